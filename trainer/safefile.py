"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .errors import KilnError


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename; an existing file is replaced.

    Raises:
        KilnError: writing failed; nothing is left behind.
    """
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, {"format": "pt", **(metadata or {})})
        os.chmod(temporary, mode)  # safetensors makes files that only their owner can read
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except Exception as error:  # safetensors wraps OSError in its own type
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise KilnError(f"Cannot write {path} ({error}); check free space and write permission.") from error


def write_text(path: Path, text: str) -> None:
    """The same for a text file, UTF-8.

    Raises:
        KilnError: writing failed; nothing is left behind.
    """
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise KilnError(f"Cannot write {path} ({error}); check free space and write permission.") from error
