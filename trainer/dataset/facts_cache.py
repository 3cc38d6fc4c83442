"""What was measured of a folder's files, kept by name, size and time: one JSON file per dataset folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..parsers import parse_json
from ..temporary import temporary_path
from .facts import Facts
from .files import VIDEO_ENDINGS, ending
from .pixels import shown

FORMAT = 2  # raise it when a measure changes
# Before, clips had a mean frame rate only, and nothing was known of what transparency keeps
BEFORE = 1

MaskFacts = tuple[str, float, int, int]  # sha256, share that is kept, width and height


class FactsCache:
    """Measures files, or knows them from an earlier scan while their size and time are the same."""

    def __init__(self, cache_folder: Path | None, folder: Path) -> None:
        self._root = folder
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        self._path = None if cache_folder is None else cache_folder / f"{name}.json"
        self._known = self._read()
        self._new: dict[str, list[Any]] = {}

    def known(self, path: Path) -> Facts | None:
        """Of an image or clip that has been measured in its present state."""
        entry = self._known.get(shown(path.relative_to(self._root)))
        if entry is None:
            return None
        try:
            status = path.stat()
        except OSError:
            return None
        return Facts(**entry[2]) if entry[:2] == [status.st_size, status.st_mtime_ns] else None

    def facts(self, path: Path, measure: Callable[[Path], Facts]) -> Facts:
        """Of an image or clip."""
        values = self._look(path, lambda: dataclasses.asdict(measure(path)))
        return Facts(**values)

    def mask(self, path: Path, measure: Callable[[Path], MaskFacts]) -> MaskFacts:
        """Of a mask file."""
        digest, kept, width, height = self._look(path, lambda: list(measure(path)), "sized mask:")
        return digest, kept, width, height

    def save(self) -> None:
        """Best effort: a full disk costs time at the next scan, nothing else."""
        if self._path is None or not self._new:
            return
        temporary = temporary_path(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"format": FORMAT, "files": {**self._known, **self._new}})
            temporary.write_text(text, "utf-8")
            os.replace(temporary, self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _look(self, path: Path, measure: Callable[[], Any], kind: str = "") -> Any:
        """What is known of a file in its present state, or else is measured now."""
        try:
            status = path.stat()
        except OSError:
            return measure()
        key = kind + shown(path.relative_to(self._root))
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self._known.get(key)
        if entry is not None and entry[:2] == stamp:
            return entry[2]
        self._new[key] = [*stamp, values := measure()]
        return values

    def _read(self) -> dict[str, list[Any]]:
        try:
            data = parse_json(self._path.read_text("utf-8")) if self._path else {}
            files: dict[str, list[Any]] = data["files"]
            if data["format"] == BEFORE:
                return {key: entry for key, entry in files.items() if _still_right(key, entry[2])}
            return files if data["format"] == FORMAT else {}
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            return {}


def _still_right(name: str, values: dict[str, Any]) -> bool:
    return values["frames"] == 1 and not values["has_alpha"] and ending(name) not in VIDEO_ENDINGS
