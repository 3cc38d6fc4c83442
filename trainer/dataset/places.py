"""Paths as files of ours hold them: below the host's folders, so that no file tells where on a machine they lie, and a
host that is moved finds its runs again.

    user/__lora_kiln/runs/20260101-120000-abcd/lora.safetensors
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
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

    @functools.cached_property
    def _roots(self) -> list[tuple[str, Path]]:
        """What is written for each folder, and the folder, also without links; in the order in which they are tried."""
        marked = [(f"{OPENED}/{_mark(folder)}", folder) for folder in self.opened]
        named = [(name, folder) for name, folder in self.named.items() if name]
        rest = [("", self.named[""])] if "" in self.named else []
        return [(name, root) for name, folder in (*named, *marked, *rest) for root in (folder, _real(folder))]

    def stored(self, path: Path | str) -> str:
        """As it is written: below one of the folders, with forward slashes. Outside of all it stays as it is."""
        for name, root in self._roots:
            with suppress(ValueError):
                return str(PurePosixPath(name, Path(path).relative_to(root).as_posix()))
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


def _real(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # a circle of links
        return folder


def _mark(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
