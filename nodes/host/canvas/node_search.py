"""Words by which the host's node search finds a node besides its name."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io


def search_words(words: tuple[str, ...]) -> dict[str, Any]:
    """Arguments for a schema: host 0.33 has aliases, 0.3.75 searches names alone."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {"search_aliases": list(words)} if "search_aliases" in known else {}
