"""Which captions and fields a model wrote, and nobody has edited since.

Sidecars stay ordinary files, so the marks lie outside the dataset: a hash of the file's name and the text, one a line.
A text that is edited, in whatever program, has no mark any more; one that is put back has it again. Moving the folder
or an item changes nothing.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import KilnError

CAPTION = "caption"  # no field can be called so
DIGITS = 32  # of a mark
SETTINGS_DIGITS = 16

_lock = threading.Lock()
_known: dict[
    Path, tuple[tuple[int, int], dict[str, str]]
] = {}  # file -> its size and time, and what it holds


class ModelMarks:
    """The marks of all datasets."""

    def __init__(self, file: Path) -> None:
        """
        Args:
            file: made when something is added.
        """
        self._file = file

    def among(self, name: str, caption: str, fields: Mapping[str, str]) -> tuple[str, ...]:
        """What of an item a model wrote: CAPTION, and names of fields."""
        marks = self._marks()
        if not marks:
            return ()
        said = {**fields, CAPTION: caption}
        return tuple(what for what, text in said.items() if text and _mark(name, what, text) in marks)

    def settings(self, name: str, what: str, text: str) -> str:
        """The settings by which a model wrote it, as given to `add`; "" where none did."""
        return self._marks().get(_mark(name, what, text), "")

    def add(self, name: str, texts: Mapping[str, str], settings: str) -> None:
        """A model has written these.

        Args:
            name: of the picture or clip, without folders.
            texts: CAPTION or a field's name -> text.
            settings: SETTINGS_DIGITS hexadecimal digits.

        Raises:
            KilnError: the file cannot be written.
        """
        # The line end comes first, so that a line that a power cut has cut does not spoil the next one
        lines = "".join(f"\n{_mark(name, what, text)} {settings}" for what, text in texts.items())
        try:
            with _lock:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with open(self._file, "a", encoding="ascii") as file:
                    file.write(lines)
        except OSError as error:
            raise KilnError(
                f"Cannot write {self._file} ({error}); check free space and write permission."
            ) from error

    def _marks(self) -> dict[str, str]:
        try:
            status = self._file.stat()
        except OSError:
            return {}
        state = (status.st_size, status.st_mtime_ns)
        with _lock:
            known = _known.get(self._file)
            if known is None or known[0] != state:
                known = (state, dict(_read(self._file.read_text("ascii", "replace").splitlines())))
                _known[self._file] = known
        return known[1]


def _read(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        mark, _, settings = line.partition(" ")
        if len(mark) == DIGITS and len(settings) == SETTINGS_DIGITS:  # else a power cut has cut it
            yield mark, settings


def _mark(name: str, what: str, text: str) -> str:
    return hashlib.sha256("\0".join((name, what, text)).encode("utf-8", "replace")).hexdigest()[:DIGITS]
