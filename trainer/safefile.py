"""Writing a file whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import KilnError
from .temporary import temporary_path

ENDINGS = (".safetensors", ".sft")

HASH = "sha256 of the bytes of all tensors".ljust(64, ".")
"""In metadata: write_safetensors puts the hash's 64 hexadecimal digits in its place."""


def is_safetensors(name: str) -> bool:
    """Whether a file's name has one of ENDINGS, in capitals or not."""
    return name.lower().endswith(ENDINGS)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, which is made when missing. What was written there is flushed to disk
    and takes the name `path`; a file of that name is replaced.

    Raises:
        KilnError: writing failed; nothing is left behind.
    """
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors wraps the other in its own
        raise KilnError(f"Cannot write {path} ({error}); check free space and write permission.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write, or replace, a safetensors file. Where the metadata holds HASH, the file holds the hash.

    Raises:
        KilnError: writing failed; nothing is left behind.
    """
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, {"format": "pt", **(metadata or {})})
        os.chmod(temporary, mode)  # safetensors makes files that only their owner can read
        if any(HASH in text for text in (metadata or {}).values()):
            _fill_in_hash(temporary)


def _fill_in_hash(path: Path) -> None:
    """The order of the tensors in the file is safetensors' own, so the file itself is hashed."""
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        file.seek(8)
        file.write(header.replace(HASH.encode(), digest.hexdigest().encode()))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, in memory of their own, and its metadata. Those of safetensors are views
    of the mapped file, which then could not be replaced or deleted on Windows.

    Raises:
        SafetensorError, OSError: it is gone or damaged.
    """
    with safe_open(path, "pt") as opened:
        return {key: opened.get_tensor(key).clone() for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118


def write_text(path: Path, text: str) -> None:
    """The same for a text file, UTF-8.

    Raises:
        KilnError: writing failed; nothing is left behind.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
