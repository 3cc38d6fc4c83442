"""Text beside the images as people's editors save it: UTF-8, and UTF-16 or UTF-32 with or without a mark."""

from __future__ import annotations

import codecs
from pathlib import Path

from ..errors import KilnError
from .pixels import shown

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MOST_CAPTION = 20_000  # characters; a text encoder's memory grows with the square of them
MOST_BYTES = 64 << 20  # of a table of a hundred thousand rows


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        KilnError: it cannot be read, is too large, of another encoding, or holds NUL bytes (as after a power failure).
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise KilnError(
                f"The file {shown(path)} has {size >> 20} MB, and at most {MOST_BYTES >> 20} MB of text are read; "
                "split or remove it."
            )
        data = path.read_bytes()
    except OSError as error:
        raise KilnError(f"The file {shown(path)} cannot be read ({error}); replace or remove it.") from error
    kind = "caption file" if path.suffix.lower() in (".txt", ".caption") else "file"
    try:
        text = data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        raise KilnError(
            f"The {kind} {shown(path)} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    if "\0" in text:
        raise KilnError(f"The {kind} {shown(path)} holds NUL bytes, so it is damaged; write it again.")
    return text


def _encoding(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    if len(data) % 2 == 0 and b"\0" in data:
        # UTF-16 without a mark: of most letters one byte is NUL, the other never is
        for encoding, high, low in (
            ("utf-16-le", data[1::2], data[::2]),
            ("utf-16-be", data[::2], data[1::2]),
        ):
            if high.count(0) > len(high) / 3 and not low.count(0):
                return encoding
    return "utf-8-sig"
