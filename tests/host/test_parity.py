"""Right by an independent check: diffusers' Wan with plain peft, and both ecosystems' LoRA loaders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from scripts.host_files import REPO, get_host


def test_step_and_file_equal_diffusers_and_peft() -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parent / "parity.py"),
            str(REPO / "tests" / "tiny_wan" / "models" / "tiny_wan.safetensors"),
        ],
        cwd=get_host(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["layers"] == 40
    for name in ("output", "loss", "worst_gradient", "file_host_vs_diffusers", "file_host_vs_training"):
        assert figures[name] < 1e-4, figures
    assert figures["effect_of_lora"] > 0.01, "a LoRA without effect would prove nothing"
