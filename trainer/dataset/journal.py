"""Changing many small files of a folder at once, whole or not at all, and taking it back.

An entry is written before the first file is touched: what every file held and will hold, and what is moved where. While
it is at work its name ends in `.pending`; a process that dies there leaves it behind, and `recover` puts everything
back. A finished entry is what undo needs. Entries lie outside the dataset, whose folder holds the user's files only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KilnError
from ..parsers import parse_json
from ..safefile import replacing, write_text
from ..temporary import is_temporary_in_dataset, remove_stale, temporary_path
from .names import shown_name
from .places import AS_THEY_ARE, Places

log = logging.getLogger(__name__)

MOST_ENTRIES = 100
MOST_BYTES = 64 << 20  # of all entries of a folder; the oldest go first
MANY = 32  # files, from which on one flush of the whole system is cheaper than one each

Writes = Mapping[str, bytes | None]
"""File name -> what it shall hold; None: it shall not be there."""

Moves = Sequence[tuple[str, str]]
"""(from, to), names of files; the second must be free."""


@dataclass(frozen=True)
class Entry:
    """One change that can be taken back."""

    id: str
    what: str  # short: caption, set aside, ...
    names: tuple[str, ...]  # of the items that it changed
    time: float  # seconds since 1970


class Journal:
    """The changes of one dataset folder. Callers hold a lock: two changes at once are not meant."""

    def __init__(self, store: Path, root: Path, places: Places = AS_THEY_ARE) -> None:
        """
        Args:
            store: folder of the journals of all datasets.
            root: the dataset's folder.
            places: by which the journal names it.
        """
        self.root, self._places = root, places
        self._folder = store / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]

    def apply(
        self, what: str, names: Sequence[str], writes: Writes, moves: Moves = (), onto: str = ""
    ) -> Entry:
        """Write and move, all or nothing. Entries beyond MOST_ENTRIES are forgotten.

        Args:
            what: short: caption, set aside, ...
            names: of the items.
            writes: files.
            moves: of files.
            onto: id of an entry that the change is to be taken back together with; heeded while that is the newest one.

        Raises:
            KilnError: something failed; everything is as it was.
        """
        made = self._apply(what, names, writes, moves)
        files = self._entries()
        if onto and len(files) > 1 and files[-2].stem == onto:
            made = _joined(files[-2], files[-1])
        self._prune()
        return made

    def _apply(self, what: str, names: Sequence[str], writes: Writes, moves: Moves) -> Entry:
        last = max((int(file.stem) for file in self._entries()), default=0)  # clocks may be set back
        made = Entry(f"{max(time.time_ns(), last + 1):020}", what, tuple(names), time.time())
        old = {name: _read(self.root / name) for name in writes}
        record = {
            "what": what,
            "names": list(names),
            "time": made.time,
            "root": self._places.stored(self.root).encode("utf-8", "replace").decode(),
            "old": {name: _packed(data) for name, data in old.items()},
            "new": {name: _packed(data) for name, data in writes.items()},
            "moves": [list(pair) for pair in moves],
        }
        pending = self._folder / f"{made.id}.pending"
        write_text(pending, json.dumps(record))
        try:
            _change(self.root, writes, moves)
        except OSError as error:
            if _put_back(self.root, record):
                with suppress(OSError):  # recover finds nothing to put back
                    pending.unlink(missing_ok=True)
            raise KilnError(
                f"Nothing was changed: {error}; check free space and write permission, and that no other program "
                "holds the files."
            ) from error
        os.replace(pending, pending.with_suffix(".json"))
        return made

    def newest(self) -> Entry | None:
        """What undo would take back; None for nothing."""
        for file in reversed(self._entries()):
            with suppress(KilnError):
                return _entry(file)
            file.unlink(missing_ok=True)  # damaged: it can never be undone
        return None

    def undo(self, entry_id: str) -> Entry:
        """Take the newest change back.

        Args:
            entry_id: the id that the user was shown; another one is refused.

        Raises:
            KilnError: there is no such change any more, or a file has changed since.
        """
        files = self._entries()
        if not files or files[-1].stem != entry_id:
            raise KilnError(
                "What was to be undone is not the newest change any more; look at the page again."
            )
        record = _load(files[-1])
        changed = _changed_since(self.root, record)
        if changed:
            files[-1].unlink()
            raise KilnError(
                f"{shown_name(changed)} has changed since and is left as it is; the change before can be undone next."
            )
        back = [(there, here) for here, there in reversed(record["moves"])]
        old = {name: _unpacked(data) for name, data in record["old"].items()}
        self._apply("undo", record["names"], old, back)
        for file in self._entries()[-2:]:  # the undone change and its undoing
            file.unlink()
        return Entry(entry_id, record["what"], tuple(record["names"]), record["time"])

    def forget(self, entry: Entry) -> None:
        """A change that cannot be taken back."""
        (self._folder / f"{entry.id}.json").unlink(missing_ok=True)

    def recover(self) -> bool:
        """Put back what a process that died in the middle of a change has left half done. Whether there was such."""
        found = sorted(self._folder.glob("*.pending")) if self._folder.is_dir() else []
        for file in found:
            try:
                record = _load(file)
            except KilnError as error:
                log.warning("%s", error)
                file.unlink(missing_ok=True)
                continue
            remove_stale({(self.root / name).parent for name in record["new"]}, known=is_temporary_in_dataset)
            if _put_back(self.root, record):  # else again when there is room, or write permission
                file.unlink(missing_ok=True)
        return bool(found)

    @staticmethod
    def half_done(store: Path, places: Places = AS_THEY_ARE) -> list[Path]:
        """The dataset folders in which a process died in the middle of a change."""
        roots = set()
        for file in store.glob("*/*.pending"):
            with suppress(KilnError):
                root = places.found(str(_load(file).get("root")))
                if Journal(store, root)._folder == file.parent:
                    roots.add(root)
        return sorted(roots)

    def _entries(self) -> list[Path]:
        return sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []

    def _prune(self) -> None:
        kept = 0
        for count, file in enumerate(reversed(self._entries())):
            kept += file.stat().st_size
            if count and (count >= MOST_ENTRIES or kept > MOST_BYTES):
                file.unlink(missing_ok=True)


def _change(root: Path, writes: Writes, moves: Moves) -> None:
    """Raises OSError; then some of it may be done."""
    temporary: list[tuple[Path, Path]] = []
    try:
        for name, data in writes.items():
            if data is not None:
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = temporary_path(path)
                temporary.append((draft, path))
                draft.write_bytes(data)
        _flush([draft for draft, _ in temporary])
        for here, there in moves:
            target = root / there
            if target.exists():
                raise FileExistsError(f"{shown_name(there)} is there already")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(root / here, target)
        for draft, path in temporary:
            os.replace(draft, path)
        for name, data in writes.items():
            if data is None:
                (root / name).unlink(missing_ok=True)
    finally:
        for draft, _ in temporary:
            draft.unlink(missing_ok=True)


def _flush(files: Sequence[Path]) -> None:
    if len(files) > MANY and hasattr(os, "sync"):
        os.sync()
        return
    for file in files:
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())


def _put_back(root: Path, record: dict[str, Any]) -> bool:
    """As far as files hold what the change has put there: a file that is something else by now is left alone. Whether
    nothing failed."""
    whole = True
    for name, old in record["old"].items():
        try:
            path, before, now = root / name, _unpacked(old), _read(root / name)
            if now == before or now != _unpacked(record["new"][name]):
                continue
            if before is None:
                path.unlink()
            else:  # whole: this process may be ended as the one before
                with replacing(path) as draft:
                    draft.write_bytes(before)
        except (OSError, KilnError) as error:
            log.warning("%s could not be put back (%s)", shown_name(name), error)
            whole = False
    for here, there in reversed(record["moves"]):
        try:
            if (root / there).exists() and not (root / here).exists():
                (root / here).parent.mkdir(parents=True, exist_ok=True)
                os.rename(root / there, root / here)
        except OSError as error:
            log.warning("%s could not be moved back (%s)", shown_name(there), error)
            whole = False
    return whole


def _changed_since(root: Path, record: dict[str, Any]) -> str:
    """The first file that is not as the change left it; "" for none."""
    for name, data in record["new"].items():
        if _read(root / name) != _unpacked(data):
            return str(name)
    for here, there in record["moves"]:
        if not (root / there).exists() or (root / here).exists():
            return str(there)
    return ""


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KilnError(
            f"The file {shown_name(path.name)} cannot be read ({error}); mend or remove it."
        ) from error


def _packed(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _unpacked(data: str | None) -> bytes | None:
    return None if data is None else base64.b64decode(data)


def _load(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = parse_json(file.read_text("utf-8"))
        for field in ("old", "new", "moves", "names", "what", "time"):
            record[field]
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KilnError(
            f"The journal {file.name} cannot be read ({error}); this change cannot be undone."
        ) from error


def _joined(first: Path, second: Path) -> Entry:
    """Two changes as one, under the second one's id. A power cut between the two lines leaves both, each whole."""
    before, after = _load(first), _load(second)
    record = {
        **after,
        "names": list(dict.fromkeys([*before["names"], *after["names"]])),
        "old": {**after["old"], **before["old"]},
        "new": {**before["new"], **after["new"]},
        "moves": [*before["moves"], *after["moves"]],
    }
    write_text(second, json.dumps(record))
    first.unlink()
    return _entry(second)


def _entry(file: Path) -> Entry:
    record = _load(file)
    return Entry(file.stem, record["what"], tuple(record["names"]), record["time"])
