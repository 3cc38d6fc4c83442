"""Two processes under accelerate launch do what one does with twice the batch."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "parallel_run.py"


def start(command: list[str], folder: Path, name: str, batch_size: int) -> subprocess.Popen[str]:
    arguments = [str(SCRIPT), str(folder), str(folder / f"{name}.safetensors"), str(batch_size)]
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(folder: Path, name: str, batch_size: int, *commands: list[str]) -> Path:
    """Start all commands, wait for all of them."""
    running = [start(command, folder, name, batch_size) for command in commands]
    try:
        for each in running:
            text, _ = each.communicate(timeout=300)
            assert each.returncode == 0, text[-3000:]
    finally:
        for each in running:
            each.kill()
    return folder / f"{name}.safetensors"


def launch(*options: str) -> list[str]:
    common = ["--multi_gpu", "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *common, *options]


def machines() -> list[list[str]]:
    """Two, that find each other over the network; here both are this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    return [launch(*meeting, "--machine_rank", str(rank)) for rank in range(2)]


ONE_MACHINE = [launch("--num_machines", "1", "--main_process_port", "0")]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with twice the batch."""
    return run(tmp_path_factory.mktemp("one"), "one", 4, [sys.executable])


@pytest.mark.parametrize("commands", [lambda: ONE_MACHINE, machines], ids=["one machine", "two machines"])
def test_two_processes_equal_one_with_twice_the_batch(
    tmp_path: Path, one: Path, commands: Callable[[], list[list[str]]]
) -> None:
    two = run(tmp_path, "two", 2, *commands())
    told = [json.loads(p.with_suffix(".json").read_text()) for p in (two, one)]
    assert [t["processes"] for t in told] == [2, 1]
    torch.testing.assert_close(told[0]["losses"], told[1]["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(told[0]["validation"], told[1]["validation"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(told[0]["items"], told[1]["items"], rtol=1e-3, atol=1e-4)
    ours, expected = load_file(two), load_file(one)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-5)
    assert any(t.any() for k, t in ours.items() if k.endswith("lora_B.weight"))
    assert list(tmp_path.glob("run of 2/step-*"))
