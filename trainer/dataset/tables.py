"""Tables of captions: metadata.jsonl, metadata.csv or metadata.tsv, one row per file with file_name and text.

A row finds its file whatever the case, the Unicode form, the slashes or the folders in front of the name, as long as
only one file can be meant.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import KilnError
from ..parsers import lines_of, parse_json
from .files import Found, ending, name_key
from .pixels import shown
from .remarks import rows_of_nothing, rows_without_effect
from .text_files import read_text

CAPTION_KEYS = ("text", "caption", "prompt")
NAME_KEYS = ("file_name", "filename", "image", "video")
SEPARATORS = ",;\t|"

Row = Mapping[str, Any]


class BadRow(dict[str, Any]):
    """A row that cannot be used as it is, and why."""

    def __init__(self, values: Row, reason: str) -> None:
        super().__init__(values)
        self.reason = reason


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
        """A file's row, from the table in its own folder or in one above it within the dataset.

        Raises:
            KilnError: the row cannot be used.
        """
        for folder in media.parents:
            row = self._rows.get(folder, {}).get(media)
            if isinstance(row, BadRow):
                raise KilnError(row.reason)
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
            elif isinstance(row, BadRow):  # even its name may be another column's
                self.errors.append(row.reason)
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
    for number, row in rows:
        if not any(row.values()):  # as spreadsheets leave behind the last one
            continue
        name = value_of(row, NAME_KEYS)
        if not name:
            raise KilnError(f"Row {number} of {shown(path)} names no file; it needs a column file_name.")
        yield plain_path(str(name)), row


def value_of(row: Row, keys: tuple[str, ...]) -> Any:
    """The first of these keys, in any case, that has a flat value; None without one."""
    lower = {str(key).strip().lower(): key for key in reversed(list(row))}
    return next((v for k in keys if k in lower and (v := row[lower[k]]) and is_flat(v)), None)


def is_flat(value: Any) -> bool:
    """Whether a value of JSON is a text, a number or a list of such; workflows saved beside an image have others."""
    return not isinstance(value, dict) and not (
        isinstance(value, list) and any(isinstance(v, dict | list) for v in value)
    )


def plain_path(name: str) -> str:
    """A file's name as a table gives it, with forward slashes."""
    return re.sub(r"^(\./)+", "", name.strip().replace("\\", "/"))


def _exists(folder: Path, name: str) -> bool:
    try:
        return (folder / name).exists()
    except (OSError, ValueError):  # too long for the system, or with a NUL byte
        return False


def _csv_rows(path: Path, text: str, names: FileNames) -> list[tuple[int, Row]]:
    """Rows by column, with their numbers as a spreadsheet counts them. What separates them is what makes a header or a
    file's name of the first line."""
    lines = lines_of(text)
    separators = SEPARATORS
    if lines and lines[0].lower().startswith("sep=") and len(lines[0].strip()) == 5:  # as Excel may write it
        separators = lines.pop(0)[4]
    try:
        for separator in separators:
            rows = list(reader_of(lines, separator))
            columns = [c.strip() for c in rows[0]] if rows else []
            between = separator + " " * _is_spaced(lines, separator)
            if {c.lower() for c in columns} & set(NAME_KEYS):
                _check_quotes(path, lines, separator)
                _check_columns(path, columns)
                return [(n, _by_column(path, n, columns, row, between)) for n, row in enumerate(rows[1:], 2)]
            if len(columns) > 1 and any(names.find(plain_path(columns[0]))):  # no header at all
                _check_quotes(path, lines, separator)
                # Rows of several lengths have captions with commas and without quotes
                width = len(columns) if len({len(row) for row in rows if row}) == 1 else 2
                columns = ["file_name", "text", *(f"column_{n}" for n in range(3, width + 1))]
                return [(n, _by_column(path, n, columns, row, between)) for n, row in enumerate(rows, 1)]
    except csv.Error as error:
        raise KilnError(f"The table {shown(path)} cannot be read ({error}); save it again as CSV.") from error
    if lines:
        raise KilnError(
            f"The table {shown(path)} has no column file_name between commas, semicolons or tabs; name its columns."
        )
    return []


def reader_of(lines: list[str], separator: str, strict: bool = False) -> Any:
    """The records of a table. Where a space stands behind the first separator, one does behind all of them."""
    return csv.reader(
        lines, delimiter=separator, skipinitialspace=_is_spaced(lines, separator), strict=strict
    )


def _is_spaced(lines: list[str], separator: str) -> bool:
    return bool(lines) and lines[0].partition(separator)[2].startswith(" ")


def _check_quotes(path: Path, lines: list[str], separator: str) -> None:
    """Raise KilnError for a quote that is never closed: it takes all rows behind it into one value."""
    whole = 0
    try:
        for _ in reader_of(lines, separator, strict=True):
            whole += 1
    except csv.Error as error:
        if "end of data" in str(error):
            raise KilnError(
                f"Row {whole + 1} of {shown(path)} has a quotation mark that is never closed; close it or leave it out."
            ) from error


def _check_columns(path: Path, columns: list[str]) -> None:
    """Raise KilnError for a name that several columns have: one of them would count without a word."""
    for name, times in Counter(map(name_key, filter(None, columns))).items():
        if times > 1:
            raise KilnError(
                f"The table {shown(path)} has {times} columns named {name}; rename or remove all but one."
            )


def _by_column(path: Path, number: int, columns: list[str], row: list[str], between: str) -> Row:
    """A row's values by column. Has it more than there are columns, its last one is a caption that holds separators and
    has no quotes, or nobody can tell which value is too many."""
    filled, named = _without_empty_end(row), _without_empty_end(columns)
    values = {c: v for c, v in zip(columns, row, strict=False) if c}
    if len(filled) <= len(named):
        return values
    if named == columns and columns[-1].lower() in CAPTION_KEYS:
        return {**values, columns[-1]: between.join(filled[len(columns) - 1 :])}
    return BadRow(
        values,
        f"Row {number} of {shown(path)} has {len(filled)} values for {len(named)} columns; put a text that holds "
        f"{between[0]!r} in quotes, and name every column.",
    )


def _without_empty_end(cells: list[str]) -> list[str]:
    """Spreadsheets fill rows up to the longest one."""
    return cells[: max((n for n, cell in enumerate(cells, 1) if cell.strip()), default=0)]


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise KilnError(f"Line {number} of {shown(path)} is not JSON ({error}); mend it.") from error
        if not isinstance(row, dict):
            raise KilnError(f"Line {number} of {shown(path)} is no JSON object; write it as {{...}}.")
        yield number, row
