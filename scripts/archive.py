"""The archive that is published: what git tracks, less what .comfyignore names.

    python -m scripts.archive node.zip

The same rule as `comfy node pack`, so that a test can look at the result without that tool.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from pathspec import PathSpec

from scripts.host_files import REPO


def published_files() -> list[str]:
    """Paths relative to the repository's root, in order."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, check=True, capture_output=True).stdout
    lines = (REPO / ".comfyignore").read_text("utf-8").splitlines()
    ignored = PathSpec.from_lines("gitignore", lines)
    tracked = [name for name in listed.decode("utf-8").split("\0") if name]
    return sorted(name for name in tracked if not ignored.match_file(name) and (REPO / name).is_file())


def pack(target: Path) -> None:
    """Write the archive."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in published_files():
            archive.write(REPO / name, name)


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
