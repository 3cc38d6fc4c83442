"""Control pictures: what an item is made from, for models that edit or are steered by a second picture.

    control folder      photo.png, or photo_0.png and photo_1.png for several, beside the target photo.png
    the same folder     photo_control.png, photo_control_1.png, or OneTrainer's photo-condlabel.png; asked for as "."
    a table or .json    the column control_path or conditioning_image (control_path_0, control_path_1 ...), relative to
                        its folder or to the dataset's

Names are compared as those of captions and masks are. A target may have another ending than its control picture.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import KilnError, shortened
from .files import CONDITION_LABEL, ENDINGS, Found, ending, find_files, name_key, natural_key
from .names import inside
from .pixels import shown
from .remarks import names_of

COLUMN = re.compile(
    r"(?:control|(?:control|condition|conditioning)_image)(?:_path|_file_name)?(?:_(\d{1,2}))?"
)
"""Names of the columns that other trainers read control pictures from: control_path and control_path_0 of
musubi-tuner, conditioning_image of diffusers, and with _file_name as Hugging Face's imagefolder has it."""

_NUMBERED = re.compile(r"(.+)_(\d{1,2})$")
_BESIDE = re.compile(r"(.+)_control(?:_(\d{1,2}))?$", re.IGNORECASE)

Name = tuple[str, str]
"""The folder below the dataset's or the control folder, and the key of a file's name."""


class Controls:
    """The control pictures of a dataset's items.

    Attributes:
        used: those that `of` has given.
        beside: pictures of the dataset's folder that are no items, as they are named like control pictures.
        unread: files of the control folders of kinds that are not read.
    """

    def __init__(
        self, folders: Sequence[Path], found: Found, speaks: Callable[[Path], bool] = lambda path: False
    ) -> None:
        """
        Args:
            folders: in the order in which the pictures are given to the model; the dataset's own folder stands for
                pictures beside their targets.
            found: what lies in the dataset's folder.
            speaks: whether something is said of a file of it, as of an item.
        """
        self._root = found.root
        self.used: set[Path] = set()
        self.unread: list[Path] = []
        self._doubles: set[Path] = set()
        self._files: dict[Path, dict[Name, list[Path]]] = {}
        self._named_beside = list(_controls_beside(found.media))
        self.beside: frozenset[Path] = frozenset()
        if found.root in folders:
            lonely = (p for p in found.media if _BESIDE.fullmatch(p.stem) and not speaks(p))
            self.beside = frozenset((*self._named_beside, *lonely))
        apart = any(folder != found.root for folder in folders)
        items = (path for path in found.media if path not in self.beside)
        targets = _Targets(found.root, items if apart else ())
        for folder in folders:
            if folder == found.root:
                pictures = [*self.beside, *(p for p in found.labels if _is_condition(p))]
                self._files[folder] = _by_target(pictures, folder, _name_beside)
            else:
                others = frozenset((*folders, found.root)) - {folder}
                there = find_files(folder, True, apart=others)
                self.unread += there.unread
                self._files[folder] = _by_target(there.media, folder, targets.name_apart)

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
        found += self.of_columns(media, fields)
        self.used.update(found)
        return found

    def of_columns(self, media: Path, fields: Mapping[str, str]) -> Iterator[Path]:
        """Those that columns name.

        Raises:
            KilnError: a file is not there.
        """
        columns = [
            (int(match[1] or -1), name) for name in fields if (match := COLUMN.fullmatch(column_key(name)))
        ]
        for _, name in sorted(columns):
            value = fields[name].strip()
            whole = self._picture(media, value)
            # A list in a json file has become a text with commas
            parts = [value] if whole is not None else [part.strip() for part in value.split(",")]
            for part in filter(None, parts):
                path = whole or self._picture(media, part)
                if path is None:
                    raise KilnError(
                        f"The column {name} of {shown(media)} names {shortened(part, 80)!r}, which is no picture of "
                        "the dataset's folder; write a path relative to the folder of the table."
                    )
                yield path

    def remarks(self) -> Iterator[str]:
        """On control pictures that belong to no item, and on items that may be control pictures."""
        doubles = self._doubles - self.used
        if doubles:
            yield (
                f"{len(doubles)} control pictures are not used, as another one of the same name is: "
                f"{names_of(sorted(doubles))}."
            )
        for folder, files in self._files.items():
            unused = {p for group in files.values() for p in group} - self.used - doubles
            if unused:
                yield (
                    f"{len(unused)} pictures of the control folder {shown(folder)} belong to no item: "
                    f"{names_of(sorted(unused))}."
                )
        items = [p for p in self._named_beside if p not in self.beside and p not in self.used]
        if items:
            yield (
                f"{len(items)} pictures are named like the control picture of another one ({names_of(items)}); they "
                "are items of their own unless control_folders on Load Dataset holds a dot."
            )

    def _in_folder(self, folder: Path, files: dict[Name, list[Path]], media: Path) -> list[Path]:
        place = media.parent.relative_to(self._root).as_posix()
        for key in ((place, media.stem), (place, media.name), (".", media.stem), (".", media.name)):
            group = files.get((key[0], name_key(key[1])))
            if group:
                return self._one_of_each_name(group, media)
        raise KilnError(
            f"{shown(media)} has no control picture in {shown(folder)}; put one with the same name there, or take the "
            "item out."
        )

    def _one_of_each_name(self, group: list[Path], media: Path) -> list[Path]:
        """Of photo.png and photo.jpg the one with the item's own ending, else the first."""
        alike: dict[str, list[Path]] = defaultdict(list)
        for path in group:
            alike[name_key(path.stem)].append(path)
        chosen = [min(paths, key=lambda p: ending(p.name) != ending(media.name)) for paths in alike.values()]
        self._doubles |= set(group) - set(chosen)
        return chosen

    def _picture(self, media: Path, value: str) -> Path | None:
        return next(
            (p for p in self._places(media, value) if p.is_file() and ending(p.name) in ENDINGS), None
        )

    def _places(self, media: Path, value: str) -> Iterator[Path]:
        """Where a path of a table may lead to; never out of the dataset's folder."""
        value = value.replace("\\", "/")
        for folder in media.parents:
            name = value
            if value.startswith("/") and Path(value).is_relative_to(folder):
                name = Path(value).relative_to(folder).as_posix()
            with suppress(KilnError, ValueError):
                yield inside(self._root, (folder / name).relative_to(self._root).as_posix())
            if folder == self._root:
                break


class _Targets:
    """Which names are an item's own."""

    def __init__(self, root: Path, media: Iterable[Path]) -> None:
        self._names: set[Name] = set()
        for path in media:
            place = path.parent.relative_to(root).as_posix()
            for name in (path.stem, path.name):  # a control folder may hold all pictures in one place
                self._names |= {(place, name_key(name)), (".", name_key(name))}

    def name_apart(self, place: str, path: Path) -> tuple[str, int]:
        """photo_1 is a picture of photo, unless an item is called so; photo_control_1 is, too."""
        if not self._has(place, path.stem):
            for pattern in (_BESIDE, _NUMBERED):
                match = pattern.fullmatch(path.stem)
                if match and self._has(place, match[1]):
                    return match[1], int(match[2] or -1)
        return path.stem, -1

    def _has(self, place: str, stem: str) -> bool:
        return (place, name_key(stem)) in self._names


def _controls_beside(media: Iterable[Path]) -> Iterator[Path]:
    """Files named like the control picture of another one."""
    media = list(media)
    named = [path for path in media if "_control" in path.name.casefold()]
    stems = {(p.parent, name_key(p.stem)) for p in media} if named else set()
    for path in named:
        target = target_beside(path)
        if target is not None and (path.parent, name_key(target)) in stems:
            yield path


def target_beside(control: Path) -> str | None:
    """The stem of what a picture is named as the control picture of; None for other names."""
    match = _BESIDE.fullmatch(control.stem)
    return control.stem[: -len(CONDITION_LABEL)] if _is_condition(control) else match[1] if match else None


def column_key(name: str) -> str:
    """A column's name as COLUMN has it: "Control Path" -> control_path."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def _is_condition(path: Path) -> bool:
    return path.stem.lower().endswith(CONDITION_LABEL)


def _name_beside(place: str, path: Path) -> tuple[str, int]:
    match = _BESIDE.fullmatch(path.stem)
    return target_beside(path) or path.stem, int(match[2] or -1) if match else -1


def _by_target(
    pictures: Iterable[Path], folder: Path, named: Callable[[str, Path], tuple[str, int]]
) -> dict[Name, list[Path]]:
    """The pictures of each target in the order of their numbers."""
    groups: dict[Name, list[tuple[int, list[tuple[int, int, str]], Path]]] = defaultdict(list)
    for path in pictures:
        place = path.parent.relative_to(folder).as_posix()
        name, number = named(place, path)
        groups[place, name_key(name)].append((number, natural_key(path), path))
    return {key: [path for *_, path in sorted(group)] for key, group in groups.items()}
