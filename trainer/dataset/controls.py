"""Control pictures: what an item is made from, for models that edit or are steered by a second picture.

    control folder      photo.png, or photo_0.png and photo_1.png for several, beside the target photo.png
    the same folder     photo_control.png, photo_control_1.png, or OneTrainer's photo-condlabel.png; asked for as "."
    a table or .json    the column control_path (control_path_0, control_path_1 ...), relative to its folder

Names are compared as those of captions and masks are. A target may have another ending than its control picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import KilnError, shortened
from .files import CONDITION_LABEL, ENDINGS, Found, ending, find_files, name_key
from .names import inside
from .pixels import shown
from .remarks import names_of

COLUMN = re.compile(r"control(?:_path|_image)?(?:_(\d{1,2}))?$")
"""Names of the columns that other trainers read control pictures from."""

_NUMBERED = re.compile(r"(.+)_(\d{1,2})$")
_BESIDE = re.compile(r"(.+)_control(?:_(\d{1,2}))?$", re.IGNORECASE)


class Controls:
    """The control pictures of a dataset's items."""

    def __init__(self, folders: Sequence[Path], found: Found) -> None:
        """folders: in the order in which the pictures are given to the model; the dataset's own folder stands for
        pictures beside their targets."""
        self._root = found.root
        self.used: set[Path] = set()
        self._files: dict[Path, dict[tuple[str, str], dict[int, Path]]] = {}
        self.beside: frozenset[Path] = frozenset()  # media that are no items
        for folder in folders:
            if folder == found.root:
                self.beside = frozenset(_beside(found.media))
                pictures = [*self.beside, *(p for p in found.labels if _is_condition(p))]
                self._files[folder] = _by_target(pictures, folder, _name_beside)
            else:
                self._files[folder] = _by_target(find_files(folder, True).media, folder, _name_apart)

    def of(self, media: Path, fields: Mapping[str, str]) -> list[Path]:
        """The control pictures of an item, in order.

        Args:
            media: the item's file.
            fields: what tables and sidecars say of it.

        Raises:
            KilnError: a folder holds none for it, or a column names a file that is not there.
        """
        found = [
            path for folder, files in self._files.items() for path in self._in_folder(folder, files, media)
        ]
        found += self._of_columns(media, fields)
        self.used.update(found)
        return found

    def remarks(self) -> Iterator[str]:
        """On control pictures that belong to no item."""
        for folder, files in self._files.items():
            surplus = sorted(p for group in files.values() for p in group.values() if p not in self.used)
            if surplus:
                yield (
                    f"{len(surplus)} pictures of the control folder {shown(folder)} belong to no item: "
                    f"{names_of(surplus)}."
                )

    def _in_folder(
        self, folder: Path, files: dict[tuple[str, str], dict[int, Path]], media: Path
    ) -> list[Path]:
        place = media.parent.relative_to(self._root).as_posix()
        for key in ((place, media.stem), (place, media.name), ("", media.stem), (".", media.stem)):
            group = files.get((key[0], name_key(key[1])))
            if group:
                return [group[number] for number in sorted(group)]
        raise KilnError(
            f"{shown(media)} has no control picture in {shown(folder)}; put one with the same name there, or take the "
            "item out."
        )

    def _of_columns(self, media: Path, fields: Mapping[str, str]) -> Iterator[Path]:
        columns = [(int(match[1] or 0), name) for name in fields if (match := COLUMN.fullmatch(name))]
        for _, name in sorted(columns):
            value = fields[name].strip()
            if not value:
                continue
            path = next((p for p in self._places(media, value) if p.is_file()), None)
            if path is None or ending(path.name) not in ENDINGS:
                raise KilnError(
                    f"The column {name} of {shown(media)} names {shortened(value, 80)!r}, which is no picture of the "
                    "dataset's folder; write a path relative to the folder of the table."
                )
            yield path

    def _places(self, media: Path, value: str) -> Iterator[Path]:
        """Where a path of a table may lead to; never out of the dataset's folder."""
        value = value.replace("\\", "/")
        for folder in (media.parent, self._root):
            name = value
            if value.startswith("/") and Path(value).is_relative_to(folder):
                name = Path(value).relative_to(folder).as_posix()
            try:
                path = inside(self._root, (folder / name).relative_to(self._root).as_posix())
            except (KilnError, ValueError):
                continue
            yield path


def _is_condition(path: Path) -> bool:
    return path.stem.lower().endswith(CONDITION_LABEL)


def _beside(media: Iterable[Path]) -> Iterator[Path]:
    """Files named like the control picture of another one."""
    media = list(media)
    stems = {(p.parent, name_key(p.stem)) for p in media}
    for path in media:
        match = _BESIDE.fullmatch(path.stem)
        if match and (path.parent, name_key(match[1])) in stems:
            yield path


def _name_beside(path: Path) -> tuple[str, int]:
    if _is_condition(path):
        return path.stem[: -len(CONDITION_LABEL)], 0
    match = _BESIDE.fullmatch(path.stem)
    assert match is not None
    return match[1], int(match[2] or 0)


def _name_apart(path: Path) -> tuple[str, int]:
    return path.stem, -1


def _by_target(
    pictures: Iterable[Path], folder: Path, named: Callable[[Path], tuple[str, int]]
) -> dict[tuple[str, str], dict[int, Path]]:
    """(folder below, name of the target) -> number -> picture. A picture photo_1 is the second one of photo unless a
    target is called so, which finds it by its whole name first."""
    groups: dict[tuple[str, str], dict[int, Path]] = {}
    for path in pictures:
        place = path.parent.relative_to(folder).as_posix()
        name, number = named(path)
        groups.setdefault((place, name_key(name)), {})[number] = path
    for (place, _), group in list(groups.items()):
        numbered = group.get(-1)
        match = None if numbered is None else _NUMBERED.fullmatch(numbered.stem)
        if numbered is not None and match:
            key = (place, name_key(match[1]))
            if -1 not in groups.get(key, {}):
                groups.setdefault(key, {})[int(match[2])] = numbered
    return groups
