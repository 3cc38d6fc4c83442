"""Taking rows out of a table of captions when their files leave the dataset. All other lines stay byte for byte."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from ..errors import KilnError
from ..parsers import lines_of, parse_json
from .files import ending
from .tables import NAME_KEYS, SEPARATORS, FileNames, plain_path, reader_of, value_of


def without_rows(table: Path, media: Sequence[Path], gone: Container[Path]) -> bytes | None:
    """The table's bytes without the rows of some files; None when it has none of them.

    Args:
        table: metadata.jsonl, .csv or .tsv.
        media: all files that its rows may mean, below its folder.
        gone: those of them whose rows go.

    Raises:
        KilnError: the table is of another encoding than UTF-8.
    """
    data = table.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KilnError(
            f"The table {table.name} is not UTF-8 text, so its rows stay; save it as UTF-8 and try again."
        ) from error
    names = FileNames(table.parent, list(media))

    def goes(name: object) -> bool:
        exact, meant = names.find(plain_path(str(name)))
        return (exact or meant) in gone

    lines = lines_of(text)
    jsonl = ending(table.name) == ".jsonl"
    kept = _json_lines(lines, goes) if jsonl else _csv_lines(lines, names, goes)
    if len(kept) == len(lines):
        return None
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    return mark + "".join(kept).encode()


def _json_lines(lines: list[str], goes: Callable[[object], bool]) -> list[str]:
    kept = []
    for line in lines:
        try:
            row = parse_json(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = None
        name = value_of(row, NAME_KEYS) if isinstance(row, dict) else None
        if not name or not goes(name):
            kept.append(line)
    return kept


def _csv_lines(lines: list[str], names: FileNames, goes: Callable[[object], bool]) -> list[str]:
    """A record may take several lines: the reader's own count says where each ends."""
    for separator in SEPARATORS:
        try:
            records = _records(lines, separator)
        except csv.Error:
            continue
        if not records:
            return lines
        head = [column.strip().lower() for column in records[0][0]]
        column = next((head.index(key) for key in NAME_KEYS if key in head), None)
        if column is None and any(names.find(plain_path(records[0][0][0] if records[0][0] else ""))):
            column = 0  # no header
        if column is not None:
            at = column
            return [
                line
                for record, part in records
                if not (len(record) > at and record[at] and goes(record[at]))
                for line in part
            ]
    return lines


def _records(lines: list[str], separator: str) -> list[tuple[list[str], list[str]]]:
    """Every record with the lines that it takes."""
    reader, start = reader_of(lines, separator), 0
    found = []
    for record in reader:
        found.append((record, lines[start : reader.line_num]))
        start = reader.line_num
    return found
