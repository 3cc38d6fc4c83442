"""Editing a dataset as its page does: captions and fields as sidecar files, taking items out, bringing them back.

    photo.txt         the caption
    photo.json        fields; keys that are there already stay
    masks/photo.png   a mask that was painted; where the item has one in another place, that one is replaced

Every change names the version of each item that its author saw (browse.py). If one of them is another by now, nothing
is written. Changes are whole or not at all and can be undone (journal.py), except deleting.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KilnError
from ..parsers import parse_json
from .browse import Contents, Listed, Part
from .files import SET_ASIDE, ending
from .journal import Entry, Journal
from .names import inside, shown_name
from .places import AS_THEY_ARE, Places
from .table_rows import without_rows
from .tables import CAPTION_KEYS, NAME_KEYS, is_flat, value_of
from .text_files import MOST_CAPTION, read_text

MOST_FIELDS = 100
MOST_NAME = 100  # characters of a field's name
TRASH = ".kiln_deleted"  # for the moment in which files are deleted
DELETE = "delete"
MOST_OUTDATED = 100  # items that are named as changed; when so many are found, no more are looked for

_lock = threading.Lock()  # one change at a time: versions are checked and files written under it


class Outdated(KilnError):
    """Items have changed since they were looked at.

    Attributes:
        names: of these items, MOST_OUTDATED at most.
    """

    __module__ = "lora_kiln"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        first, more = shown_name(names[0]), len(names) - 1
        if not more:
            super().__init__(
                f"Nothing was written: {first} changed meanwhile, in another tab or program; look at the new state and "
                "do it again."
            )
            return
        count = f"{more}+" if len(names) == MOST_OUTDATED else str(more)
        super().__init__(
            f"Nothing was written: {first} and {count} more changed meanwhile, in another tab or program; look "
            "at the new state and do it again."
        )


@dataclass(frozen=True)
class Seen:
    """An item, in the version that its author looked at."""

    name: str
    version: str


@dataclass(frozen=True)
class Change:
    """What shall be said of an item."""

    seen: Seen
    caption: str | None = None  # None: as it is
    fields: dict[str, str] = field(default_factory=dict)  # an empty value removes the field


class DatasetEditor:
    """Changes in one folder."""

    def __init__(self, root: Path, part: Part, journals: Path, places: Places = AS_THEY_ARE) -> None:
        """
        Args:
            root: the dataset's folder.
            part: which of its items are looked at.
            journals: where the journals of all folders lie, outside of them.
            places: by which the journals name the folder.
        """
        self.root = root
        self._part = part
        self._journal = Journal(journals, root, places)

    def newest(self) -> Entry | None:
        """What undo would take back. Also mends what a process that died has left half done."""
        with _lock:
            self._journal.recover()
            entry = self._journal.newest()
            if entry is None or entry.what != DELETE:  # what cannot be brought back any more
                shutil.rmtree(self.root / TRASH, ignore_errors=True)
            return entry

    def write(self, changes: Sequence[Change], what: str, onto: str = "") -> Entry | None:
        """Set captions and fields. `onto` as in Journal.apply.

        Returns:
            The entry that undo takes back; None when nothing would change.

        Raises:
            Outdated: an item is not as its author saw it.
            KilnError: a file cannot be written, or a text is too long.
        """
        with _lock:
            contents, found = self._check([c.seen for c in changes])
            writes: dict[str, bytes | None] = {}
            for change, item in zip(changes, found, strict=True):
                media = self.root / item.name
                writes.update(self._named(_caption_writes(change, item, media, contents)))
                writes.update(self._named(_field_writes(change, item, media, contents)))
            if not writes:
                return None
            return self._journal.apply(what, [c.seen.name for c in changes], writes, onto=onto)

    def write_mask(self, seen: Seen, mask: bytes) -> Entry:
        """Give an item another mask.

        Args:
            seen: the item.
            mask: a PNG.

        Raises: as write.
        """
        with _lock:
            contents, (item,) = self._check([seen])
            media = self.root / item.name
            before = contents.mask(media)
            target = contents.new_mask(media) if before is None else before.with_suffix(".png")
            writes: dict[str, bytes | None] = {
                self._name(inside(self.root, self._name(_no_link(target)))): mask
            }
            if before is not None and before != target:
                writes[self._name(_no_link(before))] = None
            return self._journal.apply("mask", [item.name], writes)

    def set_aside(self, seen: Sequence[Seen]) -> Entry:
        """Move items with all that belongs to them into the sub-folder set_aside.

        Raises: as write.
        """
        with _lock:
            contents, found = self._check(seen)
            found = [item for item in found if not item.aside]
            if not found:
                raise KilnError("All of these items are set aside already; choose others.")
            return self._take_out(contents, found, SET_ASIDE, "set aside")

    def bring_back(self, seen: Sequence[Seen]) -> Entry:
        """Move items out of set_aside, to where they were.

        Raises: as write.
        """
        with _lock:
            contents, found = self._check(seen)
            moves: list[tuple[str, str]] = []
            for item in found:
                if not item.aside:
                    raise KilnError(f"{shown_name(item.name)} is not set aside; choose items that are.")
                names = map(self._name, contents.belongings(self.root / item.name))
                moves += [(name, name.removeprefix(f"{SET_ASIDE}/")) for name in names]
            moves = list(dict.fromkeys(moves))  # a control picture may be chosen beside its item
            self._check_free(moves)
            entry = self._journal.apply("bring back", [s.name for s in seen], {}, moves)
            self._remove_empty(SET_ASIDE)
            return entry

    def delete(self, seen: Sequence[Seen]) -> int:
        """Delete items with all that belongs to them, for good.

        Returns:
            How many files went.

        Raises: as write; then all of them are still there.
        """
        with _lock:
            shutil.rmtree(self.root / TRASH, ignore_errors=True)  # left by a process that died
            entry = self._take_out(*self._check(seen), TRASH, DELETE)
            files = sum(len(names) for _, _, names in os.walk(self.root / TRASH))
            self._journal.forget(entry)
            shutil.rmtree(self.root / TRASH, ignore_errors=True)
            self._remove_empty(SET_ASIDE)
            return files

    def undo(self, entry_id: str) -> Entry:
        """Take the newest change back.

        Raises:
            KilnError: it is another one by now, or a file has changed since.
        """
        with _lock:
            entry = self._journal.undo(entry_id)
            self._remove_empty(SET_ASIDE)
            return entry

    def _check(self, seen: Sequence[Seen]) -> tuple[Contents, list[Listed]]:
        """The items as they are. Raises Outdated when one is not what its author saw."""
        if not seen:
            raise KilnError("No item is chosen; choose at least one.")
        if len({each.name for each in seen}) < len(seen):
            raise KilnError("An item is named twice; name each once.")
        self._journal.recover()
        contents = Contents(self.root, self._part)
        found: list[Listed] = []
        changed: list[str] = []
        for each in seen:
            item = contents.item(inside(self.root, each.name))
            if item is not None and item.name == each.name and item.version == each.version:
                found.append(item)
                continue
            changed.append(each.name)
            if len(changed) == MOST_OUTDATED:
                break
        if changed:
            raise Outdated(changed)
        return contents, found

    def _take_out(self, contents: Contents, items: Sequence[Listed], folder: str, what: str) -> Entry:
        """Move items into a sub-folder; what a table says of them goes into sidecars there."""
        moves: list[tuple[str, str]] = []
        writes: dict[str, bytes | None] = {}
        for item in items:
            media = self.root / item.name
            files = contents.belongings(media, pictures=folder != TRASH)  # what is shown as an item is kept
            moves += [(self._name(path), f"{folder}/{self._name(path)}") for path in files]
            if contents.row(media):
                writes.update(self._named(_own_sidecars(item, self.root / folder / item.name, files)))
        gone = {self.root / item.name for item in items}
        for table in contents.tables():
            after = without_rows(table, contents.media_below(table.parent), gone)
            if after is not None:
                writes[self._name(_no_link(table))] = after
        moves = list(dict.fromkeys(moves))  # a control picture may be chosen beside its item
        self._check_free(moves)
        return self._journal.apply(what, [i.name for i in items], writes, moves)

    def _check_free(self, moves: Sequence[tuple[str, str]]) -> None:
        for _, there in moves:
            if (self.root / there).exists():
                raise KilnError(
                    f"Nothing was moved: {shown_name(there)} is there already; rename or remove one of the two."
                )

    def _remove_empty(self, folder: str) -> None:
        for here, _, _ in os.walk(self.root / folder, topdown=False):
            with suppress(OSError):
                os.rmdir(here)

    def _named(self, writes: dict[Path, bytes]) -> dict[str, bytes]:
        return {self._name(path): data for path, data in writes.items()}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def recover_all(journals: Path, places: Places = AS_THEY_ARE) -> None:
    """Put back what a process that died has left half done in any folder, before its captions are trained."""
    with _lock:
        for root in Journal.half_done(journals, places):
            Journal(journals, root, places).recover()


def _caption_writes(change: Change, item: Listed, media: Path, contents: Contents) -> dict[Path, bytes]:
    """Into the file that holds the caption now, else into photo.txt."""
    if change.caption is None or (change.caption.strip() == item.caption and not item.error):
        return {}
    caption = change.caption.strip()
    if len(caption) > MOST_CAPTION or "\0" in caption:
        raise KilnError(
            f"The caption of {shown_name(item.name)} is longer than {MOST_CAPTION} characters or holds a NUL; "
            "shorten it."
        )
    texts = [path for path in contents.sidecars(media) if ending(path.name) != ".json"]
    if caption:
        speaking = [path for path in texts if path.read_bytes().strip()]
        target = next(iter([*speaking, *texts]), media.with_suffix(".txt"))
        return {_no_link(target): _encoded(caption)}
    return _without_caption(item, media, texts, contents)


def _without_caption(item: Listed, media: Path, texts: list[Path], contents: Contents) -> dict[Path, bytes]:
    """No caption at all: an empty text file is passed over for a json file and a table."""
    if value_of(contents.row(media), CAPTION_KEYS):
        raise KilnError(
            f"The caption of {shown_name(item.name)} stands in the folder's table; empty it there, or write another."
        )
    writes = {_no_link(path): b"" for path in texts}
    for path in contents.sidecars(media):
        if ending(path.name) == ".json" and value_of(value := _json_object(path), CAPTION_KEYS):
            kept = {k: v for k, v in value.items() if k.strip().lower() not in CAPTION_KEYS or not is_flat(v)}
            writes[_no_link(path)] = _encoded(_as_json(kept))
    return writes


def _field_writes(change: Change, item: Listed, media: Path, contents: Contents) -> dict[Path, bytes]:
    wanted = {
        name.strip(): value.strip()
        for name, value in change.fields.items()
        if item.fields.get(name.strip(), "") != value.strip()
    }
    if not wanted:
        return {}
    beside = [path for path in contents.sidecars(media) if ending(path.name) == ".json"]
    path = _no_link(beside[0]) if beside else media.with_suffix(".json")
    value = _json_object(path) if beside else {}
    for name, text in wanted.items():
        if not name or name.lower() in (*CAPTION_KEYS, *NAME_KEYS) or len(name) > MOST_NAME:
            raise KilnError(f"A field cannot be called {shown_name(name)}; choose another name.")
        if len(text) > MOST_CAPTION:
            raise KilnError(
                f"The field {shown_name(name)} is longer than {MOST_CAPTION} characters; shorten it."
            )
        if text:
            value[name] = text
        else:
            value.pop(name, None)
            if name in contents.row(media):
                value[name] = ""  # else the table's value would count
    if len(value) > MOST_FIELDS:
        raise KilnError(f"{shown_name(path.name)} would hold more than {MOST_FIELDS} fields; remove some.")
    return {path: _encoded(_as_json(value))}


def _own_sidecars(item: Listed, target: Path, files: Sequence[Path]) -> dict[Path, bytes]:
    """What its table says of an item, as sidecars beside where it goes; those that it has stay as they are."""
    has = {ending(path.name) for path in files[1:]}
    made: dict[Path, bytes] = {}
    if item.caption and not has & {".txt", ".caption"}:
        made[target.with_suffix(".txt")] = _encoded(item.caption)
    if item.fields and ".json" not in has:
        made[target.with_suffix(".json")] = _encoded(_as_json(item.fields))
    return made


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_text(path))
    except (ValueError, RecursionError) as error:  # KilnError is one
        raise KilnError(
            f"The fields cannot be written: {shown_name(path.name)} is not JSON ({error}); mend or remove it."
        ) from error
    if isinstance(value, str):
        return {"caption": value}
    if not isinstance(value, dict):
        raise KilnError(
            f"The fields cannot be written: {shown_name(path.name)} holds no JSON object; mend or remove it."
        )
    return value


def _no_link(path: Path) -> Path:
    if path.is_symlink():
        raise KilnError(
            f"{shown_name(path.name)} is a link to a file elsewhere and is not edited here; edit that file."
        )
    return path


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _encoded(text: str) -> bytes:
    return text.encode(
        "utf-8", "replace"
    )  # half a surrogate pair, which no editor makes, would not be readable
