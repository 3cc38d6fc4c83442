"""Stream from file under a hard limit: less memory than the model has, the same losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from .limited_run import wan

LIMIT = 300  # MB above what the process has when the model comes; it needs 120, now and then 200


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("limits") / "wan.safetensors"
    draws = torch.Generator().manual_seed(0)
    shapes = {k: v.shape for k, v in wan().state_dict().items()}
    state = {k: torch.empty(s).normal_(std=0.02, generator=draws) for k, s in shapes.items()}
    assert 300e6 < sum(v.nbytes for v in state.values()) < 600e6
    assert sum(v.nbytes for v in state.values()) > 1.25 * (LIMIT << 20)
    save_file(state, path)
    return path


def run(folder: Path, file: Path, level: str, device: str, megabytes: int) -> dict[str, Any]:
    folder = folder / f"{level} {megabytes}"
    folder.mkdir()
    script = Path(__file__).with_name("limited_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(file), level, device, str(megabytes)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_model_larger_than_the_allowed_memory_trains_from_its_file(tmp_path: Path, file: Path) -> None:
    refused = run(tmp_path, file, "resident", "cpu", LIMIT)
    assert "can't allocate memory" in refused.get("failed", ""), "a limit that stops nothing proves nothing"
    whole = run(tmp_path, file, "resident", "cpu", 0)
    little = run(tmp_path, file, "stream from file", "cpu", LIMIT)
    assert len(little["losses"]) == 4 and little["losses"] == whole["losses"], little
    assert little["taken"] < LIMIT << 20 < file.stat().st_size < whole["taken"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_model_larger_than_the_allowed_device_memory_trains_from_its_file(
    tmp_path: Path, file: Path
) -> None:
    refused = run(tmp_path, file, "resident", "cuda", LIMIT)
    assert "out of memory" in refused.get("failed", "").lower()
    whole = run(tmp_path, file, "resident", "cuda", 0)
    little = run(tmp_path, file, "stream from file", "cuda", LIMIT)
    assert little["device"] == "cuda" and len(little["losses"]) == 4
    assert little["losses"] == pytest.approx(whole["losses"], rel=1e-5)
