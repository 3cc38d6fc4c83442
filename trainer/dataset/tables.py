"""Tables of captions: metadata.jsonl, metadata.csv or metadata.tsv, one row per file with file_name and text.

A row finds its file whatever the case, the Unicode form, the slashes or the folders in front of the name, as long as
only one file can be meant.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import KilnError
from ..parsers import parse_json
from .files import Found, ending, name_key
from .pixels import shown
from .remarks import rows_of_nothing, rows_without_effect
from .text_files import read_text

CAPTION_KEYS = ("text", "caption", "prompt")
NAME_KEYS = ("file_name", "filename", "image", "video")
SEPARATORS = ",;\t|"

Row = Mapping[str, Any]


class Tables:
    """The tables of a dataset's folders, each read once, with the file of every row.

    Attributes:
        errors: why a table or some of its rows cannot be used; one that cannot be read counts as empty.
        remarks: rows that have no effect for another reason.
    """

    def __init__(self, found: Found) -> None:
        self.errors: list[str] = []
        self.remarks: list[str] = []
        self._root = found.root
        self._rows: dict[Path, dict[Path, Row]] = {}
        for folder, path in sorted(found.tables.items()):
            inside = (
                f"{folder}{os.sep}"  # of thousands of folders, faster than asking each path for its parents
            )
            media = [m for m in found.media if str(m).startswith(inside)]
            try:
                self._rows[folder] = self._read(path, media)
            except KilnError as error:
                self.errors.append(str(error))

    def row(self, media: Path) -> Row:
        """A file's row, from the table in its own folder or in one above it within the dataset."""
        for folder in media.parents:
            row = self._rows.get(folder, {}).get(media)
            if row is not None:
                return row
            if folder == self._root:
                break
        return {}

    def _read(self, path: Path, media: list[Path]) -> dict[Path, Row]:
        folder, names = path.parent, FileNames(path.parent, media)
        found: dict[Path, Row] = {}
        loose: dict[Path, list[tuple[str, Row]]] = defaultdict(list)  # found by a part of the name only
        twice: list[str] = []
        elsewhere: list[str] = []
        nowhere: list[str] = []
        for name, row in _named_rows(path, names):
            exact, meant = names.find(name)
            if exact is not None:
                twice += [name] if exact in found else []
                found[exact] = row
            elif meant is not None:
                loose[meant].append((name, row))
            else:
                (elsewhere if _exists(folder, name) else nowhere).append(name)
        for file, rows in loose.items():
            if file not in found and len(rows) == 1:
                found[file] = rows[0][1]
            else:
                nowhere += [name for name, _ in rows]
        self.errors += rows_of_nothing(folder, nowhere)
        self.remarks += rows_without_effect(folder, twice, elsewhere)
        return found


class FileNames:
    """The files that a table's rows may mean, by whole name, by its last parts and without its ending."""

    def __init__(self, folder: Path, media: list[Path]) -> None:
        self._whole: dict[str, Path] = {}
        self._keyed: dict[str, list[Path]] = defaultdict(list)
        self._last: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        for path in media:
            name = path.relative_to(folder).as_posix()
            self._whole[name] = path
            for key in {name_key(name), name_key(str(PurePosixPath(name).with_suffix("")))}:
                self._keyed[key].append(path)
                self._last[key.rpartition("/")[2]].append((key, path))

    def find(self, name: str) -> tuple[Path | None, Path | None]:
        """The file of just this name, or the only one that can be meant by it."""
        if name in self._whole:
            return self._whole[name], None
        key = name_key(name)
        if len(same := self._keyed.get(key, [])) == 1:
            return same[0], None
        # A path of another machine, or from another folder: "C:/pictures/set/a.png", "set/a.png"
        fits = [p for known, p in self._last[key.rpartition("/")[2]] if _ends_with(key, known)]
        return None, fits[0] if len(set(fits)) == 1 and not same else None


def _ends_with(path: str, tail: str) -> bool:
    return path == tail or path.endswith("/" + tail)


def _named_rows(path: Path, names: FileNames) -> Iterator[tuple[str, Row]]:
    text = read_text(path)
    jsonl = ending(path.name) == ".jsonl"
    rows = list(_json_lines(path, text)) if jsonl else _csv_rows(path, text, names)
    for number, row in enumerate(rows, 1):
        if not any(row.values()):  # as spreadsheets leave behind the last one
            continue
        name = value_of(row, NAME_KEYS)
        if not name:
            raise KilnError(f"Row {number} of {shown(path)} names no file; it needs a column file_name.")
        yield plain_path(str(name)), row


def value_of(row: Row, keys: tuple[str, ...]) -> Any:
    """The first of these keys, in any case, that has a value; None without one."""
    lower = {str(key).strip().lower(): key for key in reversed(list(row))}
    return next((row[lower[k]] for k in keys if k in lower and row[lower[k]]), None)


def plain_path(name: str) -> str:
    """A file's name as a table gives it, with forward slashes."""
    return re.sub(r"^(\./)+", "", name.strip().replace("\\", "/"))


def _exists(folder: Path, name: str) -> bool:
    try:
        return (folder / name).exists()
    except (OSError, ValueError):  # too long for the system, or with a NUL byte
        return False


def _csv_rows(path: Path, text: str, names: FileNames) -> list[Row]:
    """Rows by column. What separates them is what makes a header or a file's name of the first line."""
    lines = text.splitlines(keepends=True)
    separators = SEPARATORS
    if lines and lines[0].lower().startswith("sep=") and len(lines[0].strip()) == 5:  # as Excel may write it
        separators = lines.pop(0)[4]
    try:
        for separator in separators:
            rows = list(csv.reader(lines, delimiter=separator))
            columns = [c.strip() for c in rows[0]] if rows else []
            if {c.lower() for c in columns} & set(NAME_KEYS):
                return [_by_column(columns, row) for row in rows[1:]]
            if len(columns) > 1 and any(names.find(plain_path(columns[0]))):  # no header at all
                columns = ["file_name", "text", *(f"column_{n}" for n in range(3, len(columns) + 1))]
                return [_by_column(columns, row) for row in rows]
    except csv.Error as error:
        raise KilnError(f"The table {shown(path)} cannot be read ({error}); save it again as CSV.") from error
    if lines:
        raise KilnError(
            f"The table {shown(path)} has no column file_name between commas, semicolons or tabs; name its columns."
        )
    return []


def _by_column(columns: list[str], row: list[str]) -> Row:
    return {c: v for c, v in zip(columns, row, strict=False) if c}


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise KilnError(f"Line {number} of {shown(path)} is not JSON ({error}); mend it.") from error
        if not isinstance(row, dict):
            raise KilnError(f"Line {number} of {shown(path)} is no JSON object; write it as {{...}}.")
        yield row
