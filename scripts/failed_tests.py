"""The tests that failed in a run of pytest, one a line: `python -m scripts.failed_tests CACHE_DIR`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def failed_tests(cache: Path) -> list[str]:
    """Node ids from a cache folder of pytest (its `cache_dir`); none if it kept none."""
    kept = cache / "v" / "cache" / "lastfailed"
    return list(json.loads(kept.read_text("utf-8"))) if kept.is_file() else []


if __name__ == "__main__":
    for name in failed_tests(Path(sys.argv[1])):
        print(name)
