"""Scripts of this folder that look inside a model, each in a process of its own; see inprocess.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.host_files import REPO, get_host

TINY_WAN = str(REPO / "tests" / "tiny_wan" / "models" / "tiny_wan.safetensors")


def run_in_host(script: str, timeout: float = 600, arguments: Sequence[str] = (TINY_WAN,)) -> dict[str, Any]:
    """What a script of this folder prints; about the tiny Wan unless it is told otherwise."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *arguments],
        cwd=get_host(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
