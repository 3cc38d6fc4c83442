"""Paths as files of ours hold them: below the host's folders, so that no file tells where on a machine they lie, and a
host that is moved finds its runs again.

    user/__lora_kiln/runs/20260101-120000-abcd/lora.safetensors
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

OPENED = "opened"  # before a mark of a folder and the path below it


@dataclass(frozen=True)
class Places:
    """The host's folders. Without any, paths are kept as they are."""

    named: Mapping[str, Path] = field(default_factory=dict)
    """Folders by the name that stands for them, wherever they lie; that of "" holds everything else."""
    opened: Sequence[Path] = ()
    """Further folders, each told by a mark of its own."""

    def stored(self, path: Path | str) -> str:
        """As it is written: below one of the folders, with forward slashes. Outside of all it stays as it is."""
        for name, folder in self.named.items():
            for root in (folder, _real(folder)):
                if name and (below := _below(path, root)) is not None:
                    return str(PurePosixPath(name, below))
        for folder in self.opened:
            if (below := _below(path, folder)) is not None:
                return str(PurePosixPath(OPENED, _mark(folder), below))
        if "" in self.named:
            for root in (self.named[""], _real(self.named[""])):
                if (below := _below(path, root)) is not None:
                    return below
        return str(path)

    def found(self, text: str) -> Path:
        """The inverse. Files of earlier versions hold whole paths, which stay what they are."""
        if Path(text).is_absolute() or PureWindowsPath(text).is_absolute():
            return Path(text)
        name, *below = PurePosixPath(text).parts or ("",)
        if name == OPENED and below:
            for folder in self.opened:
                if _mark(folder) == below[0]:
                    return folder.joinpath(*below[1:])
        if name in self.named:
            return self.named[name].joinpath(*below)
        return self.named[""] / text if "" in self.named else Path(text)

    def is_inside(self, path: Path) -> bool:
        """Whether `stored` tells nothing of the machine."""
        return not (Path(stored := self.stored(path)).is_absolute() or PureWindowsPath(stored).is_absolute())


AS_THEY_ARE = Places()


def _below(path: Path | str, folder: Path) -> str | None:
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return None


def _real(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # a circle of links
        return folder


def _mark(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
