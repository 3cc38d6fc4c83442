"""What stands beside the images: captions, and fields for caption templates.

    photo.txt, photo.caption     the caption
    photo.json                   {"caption": "...", "lighting": "neon", ...} or one string
    metadata.jsonl, metadata.csv one row per file: file_name, text and further columns (Hugging Face imagefolder)

A caption file wins over a json file, and that over a table. Columns and keys other than the caption become fields.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KilnError
from .files import TABLES
from .pixels import shown

CAPTION_KEYS = ("text", "caption", "prompt")
NAME_KEYS = ("file_name", "filename", "image", "video")


@dataclass
class Said:
    """What is said of one file."""

    caption: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def read_sidecars(media: Path, row: dict[str, Any]) -> Said:
    """Caption and fields of one file.

    Args:
        media: an image or clip.
        row: its row of the folder's table, may be empty.

    Raises:
        KilnError: a sidecar is not UTF-8 or not JSON.
    """
    said = _from_row(row)
    sidecar = media.with_suffix(".json")
    if sidecar.is_file():
        more = _from_row(_parse_json(sidecar))
        said = Said(more.caption or said.caption, {**said.fields, **more.fields})
    for ending in (".txt", ".caption"):
        path = media.with_suffix(ending)
        if path.is_file():
            said.caption = _read_text(path).strip()
            break
    return said


class Tables:
    """The metadata files of a dataset's folders, each read once. One that cannot be read counts as empty and leaves
    its reason in `errors`."""

    def __init__(self, root: Path) -> None:
        self.errors: list[str] = []
        self._root = root
        self._rows: dict[Path, dict[str, dict[str, Any]]] = {}

    def row(self, media: Path) -> dict[str, Any]:
        """A file's row, from the table in its own folder or in one above it within the dataset."""
        for folder in (p for p in media.parents if p == self._root or self._root in p.parents):
            found = self.rows(folder).get(media.relative_to(folder).as_posix())
            if found is not None:
                return found
        return {}

    def rows(self, folder: Path) -> dict[str, dict[str, Any]]:
        """All rows of one folder's table, by file name."""
        if folder not in self._rows:
            self._rows[folder] = {}
            try:
                self._rows[folder] = _read_table(folder)
            except KilnError as error:
                self.errors.append(str(error))
        return self._rows[folder]


def _read_table(folder: Path) -> dict[str, dict[str, Any]]:
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        return {}
    text = _read_text(path)
    rows = _csv_rows(text) if path.suffix == ".csv" else _json_lines(path, text)
    named = {}
    for number, row in enumerate(rows, 1):
        name = next((str(row[k]) for k in NAME_KEYS if row.get(k)), None)
        if name is None:
            raise KilnError(f"Row {number} of {shown(path)} names no file; it needs a column file_name.")
        named[name.replace("\\", "/").removeprefix("./")] = row
    return named


def _csv_rows(text: str) -> list[dict[str, Any]]:
    rows = csv.DictReader(text.splitlines(keepends=True), restkey="")
    return [{k.strip(): v for k, v in row.items() if k} for row in rows]


def _json_lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise KilnError(f"Line {number} of {shown(path)} is not JSON ({error}); mend it.") from error
        if not isinstance(row, dict):
            raise KilnError(f"Line {number} of {shown(path)} is no JSON object; write it as {{...}}.")
        rows.append(row)
    return rows


def _parse_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except KilnError:
        raise
    except (ValueError, RecursionError) as error:
        raise KilnError(f"The file {shown(path)} is not JSON ({error}); mend it.") from error
    if isinstance(value, str):
        return {"caption": value}
    if not isinstance(value, dict):
        raise KilnError(f"The file {shown(path)} holds no JSON object; write it as {{...}}.")
    return value


def _from_row(row: dict[str, Any]) -> Said:
    caption = next((_plain(row[k]) for k in CAPTION_KEYS if row.get(k)), "")
    apart = {*CAPTION_KEYS, *NAME_KEYS}
    # A workflow that was exported beside an image is a json file, too: nested values are no fields
    fields = {str(k): _plain(v) for k, v in row.items() if k not in apart and _is_flat(v)}
    return Said(caption, fields)


def _is_flat(value: Any) -> bool:
    return not isinstance(value, dict) and not (isinstance(value, list) and any(map(_nested, value)))


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    return str(value).strip()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "caption file" if path.suffix in (".txt", ".caption") else "file"
        raise KilnError(
            f"The {kind} {shown(path)} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise KilnError(f"The file {shown(path)} cannot be read ({error}); replace or remove it.") from error
