"""Our application of a LoRA equals the formula and the host's own loader, for every family and format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from scripts.host_files import REPO, get_host


def test_every_family_and_format() -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parent / "applying.py"),
            str(REPO / "tests" / "tiny_wan" / "models" / "tiny_wan.safetensors"),
        ],
        cwd=get_host(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert len(figures["formula"]) == 10 and len(figures["loader"]) == 8
    assert figures["smallest_effect"] > 0.05, "a LoRA without effect would prove nothing"
    for name, errors in figures.items():
        for kind, error in errors.items() if isinstance(errors, dict) else []:
            assert error < 1e-6, (name, kind, error)
    assert figures["merge"] < 1e-6
