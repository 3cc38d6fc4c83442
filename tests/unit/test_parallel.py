"""Two processes under accelerate launch do what one does with twice the batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "parallel_run.py"


def run(command: list[str], folder: Path, name: str, batch_size: int) -> Path:
    output = folder / f"{name}.safetensors"
    arguments = [str(SCRIPT), str(folder), str(output), str(batch_size)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0"]
    two = run(launch, tmp_path, "two", 2)
    one = run([sys.executable], tmp_path, "one", 4)
    told = [json.loads(p.with_suffix(".json").read_text()) for p in (two, one)]
    assert [t["processes"] for t in told] == [2, 1]
    torch.testing.assert_close(told[0]["losses"], told[1]["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(told[0]["validation"], told[1]["validation"], rtol=1e-5, atol=1e-6)
    ours, expected = load_file(two), load_file(one)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-5)
    assert any(t.any() for k, t in ours.items() if k.endswith("lora_B.weight"))
    assert list(tmp_path.glob("run of 2/step-*"))
