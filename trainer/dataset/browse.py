"""What a dataset folder holds, as a page shows it: every item with its caption and fields, without decoding a picture.

Each item carries a version, a hash of all that is said of it. Who changes it says which version they saw (edit.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..errors import KilnError
from .controls import target_beside
from .files import (
    ENDINGS,
    MASK_FOLDERS,
    SET_ASIDE,
    SYSTEM_FOLDERS,
    Found,
    ending,
    find_files,
    folder_state,
    name_key,
)
from .masks import Masks
from .model_marks import ModelMarks
from .pixels import is_clip
from .sidecars import Sidecars
from .tables import Row, Tables

DEEPEST = 4  # levels below the input folder at which datasets are looked for
MOST_FOLDERS = 500


@dataclass(frozen=True)
class Listed:
    """One item of a folder."""

    name: str  # relative to the folder, with forward slashes
    caption: str
    fields: dict[str, str]
    version: str  # of its sidecars
    bytes: int  # of the picture or clip
    stamp: int  # milliseconds since 1970: when the picture was changed
    clip: bool
    mask: bool  # a mask file belongs to it
    mask_stamp: int  # milliseconds since 1970: when the mask file was changed; 0 without one
    aside: bool  # set aside: it is not read
    error: str  # why its sidecars cannot be read; "" when they can
    by_model: tuple[str, ...] = ()  # what a model wrote and nobody has edited: "caption", names of fields


@dataclass(frozen=True)
class Part:
    """Which of a folder's items are meant, as on Load Dataset."""

    recursive: bool = False
    also: str = ""  # a sub-folder that is entered in any case, for validation
    controls: tuple[
        Path, ...
    ] = ()  # folders of control pictures; the dataset's own for pictures beside the items
    masks: bool = True  # whether masks are used


def part_state(folder: Path, part: Part) -> str:
    """Changes whenever something does that is read or named: of the folder, or of its control folders."""
    states = [folder_state(each, recursive=True) for each in part.controls]
    return " ".join([folder_state(folder, part.recursive, part.also), *states])


class Contents:
    """A folder's items with all that belongs to them, as they are now."""

    def __init__(self, root: Path, part: Part, marks: ModelMarks | None = None) -> None:
        """
        Args:
            root: the dataset's folder; must exist.
            part: which of its items.
            marks: what models wrote.
        """
        self.root, self._marks = root, marks
        self._read = _Beside(find_files(root, part.recursive, part.also, part.controls))
        aside = root / SET_ASIDE
        there = aside.is_dir() and not aside.is_symlink()
        self._aside = _Beside(find_files(aside, True) if there else Found(aside))

    def items(self, most: int | None = None) -> list[Listed]:
        """Every picture and clip in natural order, and behind them those that are set aside; with `most`, the first."""
        media = [*self._read.found.media, *self._aside.found.media][:most]
        return [item for path in media if (item := self.item(path)) is not None]

    def item(self, path: Path) -> Listed | None:
        """One of them; None when it is gone."""
        try:
            status = path.stat()
        except OSError:
            return None
        beside = self._beside(path)
        row: Row = {}
        mask = beside.masks.of(path)
        caption, fields, error = "", {}, ""
        try:
            row = self.row(path)
            said = beside.sidecars.read(path, row)
            caption, fields = said.caption, dict(said.fields)
        except KilnError as wrong:
            error = str(wrong)
        return Listed(
            name=path.relative_to(self.root).as_posix(),
            caption=caption,
            fields=fields,
            version=_version(beside.sidecars.of(path), row),
            bytes=status.st_size,
            stamp=status.st_mtime_ns // 1_000_000,
            clip=_is_clip(path, status.st_size, status.st_mtime_ns),
            mask=mask is not None,
            mask_stamp=0 if mask is None else _stamp(mask),
            aside=beside is self._aside,
            error=error,
            by_model=self._marks.among(path.name, caption, fields) if self._marks is not None else (),
        )

    def row(self, path: Path) -> Row:
        """What the folder's table says of an item.

        Raises:
            KilnError: its row cannot be used.
        """
        return self._beside(path).tables.row(path)

    def sidecars(self, path: Path) -> list[Path]:
        """The caption and field files of an item, the one that counts first."""
        return self._beside(path).sidecars.of(path)

    def mask(self, path: Path) -> Path | None:
        """The mask file of an item."""
        return self._beside(path).masks.of(path)

    def new_mask(self, path: Path) -> Path:
        """Where a mask goes that an item has not had: one that no other picture of its stem takes for its own."""
        alone = len(self._beside(path).alike[os.path.dirname(path), name_key(path.stem)]) == 1
        return path.parent / MASK_FOLDERS[0] / f"{path.stem if alone else path.name}.png"

    def belongings(self, path: Path, pictures: bool = True) -> list[Path]:
        """An item and what belongs to it alone: photo.txt stays where photo.png and photo.jpg share it.

        pictures: with photo_control.png, which the page shows as an item of its own; with a caption it is one.
        """
        beside = self._beside(path)
        mask = beside.masks.of(path)
        files = [*beside.sidecars.of(path), *([mask] if mask is not None else [])]
        for control in beside.controls.get((os.path.dirname(path), name_key(path.stem)), ()):
            if control in beside.labels or (pictures and self._is_silent(control)):
                files.append(control)
        if len(beside.alike[os.path.dirname(path), name_key(path.stem)]) > 1:
            files = [f for f in files if name_key(f.name).startswith(name_key(path.name))]
        return list(dict.fromkeys([path, *files]))

    def _is_silent(self, path: Path) -> bool:
        item = self.item(path)
        return item is not None and not (item.caption or item.fields or item.error)

    def tables(self) -> list[Path]:
        """The tables that are read."""
        return sorted(self._read.found.tables.values())

    def media_below(self, folder: Path) -> list[Path]:
        """Pictures and clips, those set aside not among them."""
        return [path for path in self._read.found.media if folder in path.parents]

    def _beside(self, path: Path) -> _Beside:
        return self._aside if self._aside.found.root in path.parents else self._read


@dataclass
class _Beside:
    found: Found
    alike: dict[tuple[str, str], list[Path]] = field(default_factory=dict)  # pictures of one stem
    controls: dict[tuple[str, str], list[Path]] = field(
        default_factory=dict
    )  # pictures named like controls of one
    labels: frozenset[Path] = frozenset()  # those of them that are never items

    def __post_init__(self) -> None:
        self.tables, self.sidecars, self.masks = Tables(self.found), Sidecars(self.found), Masks(self.found)
        for path in self.found.media:
            self.alike.setdefault((os.path.dirname(path), name_key(path.stem)), []).append(path)
        self.labels = frozenset(self.masks.conditions)
        for path in (*self.found.media, *self.masks.conditions):
            if (target := target_beside(path)) is not None:
                self.controls.setdefault((os.path.dirname(path), name_key(target)), []).append(path)


def dataset_folders(base: Path) -> list[tuple[str, int]]:
    """Folders below the input folder that hold pictures or clips, and how many lie in each, sub-folders left out."""
    found: list[tuple[str, int]] = []
    pending = [(base, 0)]
    while pending and len(found) < MOST_FOLDERS:
        folder, depth = pending.pop(0)
        count = 0
        for entry in _scan(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < DEEPEST and name_key(entry.name) not in (
                    *MASK_FOLDERS,
                    SET_ASIDE,
                    *SYSTEM_FOLDERS,
                ):
                    pending.append((Path(entry.path), depth + 1))
            elif ending(entry.name) in ENDINGS:
                count += 1
        if count and folder != base:
            found.append((folder.relative_to(base).as_posix(), count))
    return sorted(found)


@lru_cache(1 << 16)
def _is_clip(path: Path, size: int, changed: int) -> bool:
    """Whether a file of this size and time moves; it is looked into once."""
    return is_clip(path)


def _version(sidecars: list[Path], row: Row) -> str:
    """Changes with every byte of an item's sidecars and with its row in the folder's table."""
    digest = hashlib.sha256()
    for path in sidecars:
        try:
            data = path.read_bytes()
        except OSError as error:
            data = type(error).__name__.encode()
        digest.update(os.fsencode(path.name) + b"\0%d\0" % len(data) + data)
    digest.update(json.dumps(dict(row), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:20]


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
