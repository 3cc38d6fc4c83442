"""What stands beside the images: captions, and fields for caption templates.

    photo.txt, photo.caption     the caption; photo.png.txt and photo.txt.txt too, in any case and Unicode form
    photo.json                   {"caption": "...", "lighting": "neon", ...} or one string
    metadata.jsonl, metadata.csv one row per file, see tables.py

A caption file that says something wins over a json file, and that over a table. Columns and keys other than the
caption become fields.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KilnError
from ..parsers import parse_json
from .files import CAPTION_ENDINGS, Found, ending, name_key
from .pixels import shown
from .tables import CAPTION_KEYS, NAME_KEYS, Row, is_flat, value_of
from .text_files import MOST_CAPTION, read_text


@dataclass
class Said:
    """What is said of one file."""

    caption: str = ""
    fields: dict[str, str] = field(default_factory=dict)


class Sidecars:
    """The caption and field files of a dataset, found by the files that they belong to.

    Attributes:
        unused: caption files of an item whose caption is taken from another one.
        empty: caption files without text whose item has its caption from elsewhere.
        nested: items of which a json file or a row holds what is no text.
    """

    def __init__(self, found: Found) -> None:
        self.unused: list[Path] = []
        self.empty: list[Path] = []
        self.nested: list[Path] = []
        self._found = found
        self._by_owner: dict[tuple[str, str], list[tuple[str, Path]]] = defaultdict(list)
        self._owned: set[Path] = set()
        for path in found.sidecars:
            owner = _owner(path.name)
            self._by_owner[os.path.dirname(path), name_key(owner)].append((owner, path))

    def read(self, media: Path, row: Row) -> Said:
        """Caption and fields of one file.

        Args:
            media: an image or clip.
            row: its row of a table, may be empty.

        Raises:
            KilnError: a sidecar is not text or not JSON, or the caption is a book.
        """
        said, values = _from_row(row), [*row.values()]
        files = self.of(media)
        for path in files:
            if ending(path.name) == ".json":
                beside = _parse_json(path)
                values += beside.values()
                more = _from_row(beside)
                said = Said(more.caption or said.caption, {**said.fields, **more.fields})
        if not all(map(is_flat, values)):
            self.nested.append(media)
        caption, silent = "", []
        for path in files:
            if ending(path.name) != ".json":
                text = read_text(path).strip()
                if caption and text and text != caption:
                    self.unused.append(path)
                elif not text:
                    silent.append(path)
                caption = caption or text
        said.caption = caption or said.caption
        if len(said.caption) > MOST_CAPTION:
            raise KilnError(
                f"The caption of {shown(media)} has {len(said.caption)} characters, and at most {MOST_CAPTION} are "
                "taken; shorten it."
            )
        self.empty += silent if said.caption else []
        return said

    def orphans(self) -> list[Path]:
        """Files that belong to nothing that was asked for."""
        return [p for p in self._found.sidecars if p not in self._owned]

    def of(self, media: Path) -> list[Path]:
        """Those of one file, the one that counts first: those of just its name, else those of a like one."""
        names, folder = dict.fromkeys((media.stem, media.name)), os.path.dirname(media)
        found = [each for name in names for each in self._by_owner.get((folder, name_key(name)), ())]
        exact = [path for owner, path in found if owner in names]
        files = exact or [path for _, path in found]
        self._owned.update(files)
        return sorted(files, key=lambda p: (CAPTION_ENDINGS.index(ending(p.name)), len(p.name)))


def _owner(name: str) -> str:
    """photo.txt -> photo; photo.png.txt -> photo.png; photo.txt.txt, as Windows hides endings -> photo."""
    while ending(name) in CAPTION_ENDINGS:
        name = os.path.splitext(name)[0]
    return name


def _parse_json(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise KilnError(f"The file {shown(path)} is not JSON ({error}); mend it.") from error
    if isinstance(value, str):
        return {"caption": value}
    if not isinstance(value, dict):
        raise KilnError(f"The file {shown(path)} holds no JSON object; write it as {{...}}.")
    return value


def _from_row(row: Row) -> Said:
    caption = _plain(value_of(row, CAPTION_KEYS))
    apart = {*CAPTION_KEYS, *NAME_KEYS}
    fields = {str(k): _plain(v) for k, v in row.items() if str(k).lower() not in apart and is_flat(v)}
    return Said(caption, fields)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    return str(value).replace("\0", "").strip()
