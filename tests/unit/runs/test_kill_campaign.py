"""40 kills of all that writes; python -m tests.kill_campaign does 1,000."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts.host_files import REPO


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forty_kills() -> None:
    """In a process of its own: it forks, which a process whose torch has computed must not."""
    command = [sys.executable, "-m", "tests.kill_campaign", "--kills", "40", "--seed", "7"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    total = done.stdout.splitlines()[-1] if done.stdout else ""
    assert done.returncode == 0 and total.endswith("| 0 | 0 | 0 |"), done.stdout + done.stderr[-3000:]
