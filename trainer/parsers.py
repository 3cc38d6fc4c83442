"""JSON and TOML texts of any origin, on every Python that the pack supports: what is none is one kind of error."""

from __future__ import annotations

import json
import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same parser, as a package


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
