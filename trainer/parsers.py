"""JSON and TOML texts of any origin, on every Python that the pack supports: what is none is one kind of error. And
lists that a user types into one field, such as 768, 1024, and the lines of a text.

The marks in such a list are those that a keyboard has at hand: comma, semicolon and line break, the full-width comma
and semicolon, and the enumeration comma of Chinese. Captions are no such lists: an enumeration comma stands inside a
tag there (dataset/caption_variants.py).
"""

from __future__ import annotations

import json
import re
import sys
from io import StringIO
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same parser, as a package

_MARKS = re.compile("[,;\n\r\uff0c\uff1b\u3001]")
_WIDE_SIGNS = {
    wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)
}  # full-width ! to ~, at the same distance


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text.

    Raises:
        ValueError: it is no TOML, the message says where, or is nested too deep.
    """
    try:
        return dict(tomllib.loads(text))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, is nested too deep, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def split_list(text: str) -> list[str]:
    """The parts of a list, without the spaces around them; empty ones are left out."""
    return [part for raw in _MARKS.split(text) if (part := raw.strip())]


def split_signs(text: str) -> list[str]:
    """split_list for parts of numbers, signs and layer names, in which full-width signs stand for the ASCII ones:
    0-9 and a full-width colon before 0.5."""
    return split_list(text.translate(_WIDE_SIGNS))


def lines_of(text: str) -> list[str]:
    r"""The lines of a text with their ends, which are \n, \r\n and \r. str.splitlines also splits at signs that stand
    within a line (U+0085, U+2028, \v, \f ...)."""
    return list(StringIO(text, newline=""))
