"""TOML texts on every Python that the pack supports."""

from __future__ import annotations

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
