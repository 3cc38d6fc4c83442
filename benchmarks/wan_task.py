"""What the benchmarks of a training step share: which Wan and what is trained on it, from the command line."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.host_process import Task
from benchmarks.wan_shape import SHAPES, write_wan


def task_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that `written_task` reads, and --json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SHAPES, default="65m")
    parser.add_argument(
        "--side", type=int, default=32, help="latent pixels a side; side^2 / 4 tokens a frame"
    )
    parser.add_argument("--frames", type=int, default=1, help="frames of the latent")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser


@contextmanager
def written_task(arguments: argparse.Namespace) -> Iterator[Task]:
    """The task, and its model in a file that lives as long: fp32 on a CPU, bf16 elsewhere."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "wan.safetensors"
        write_wan(
            model, SHAPES[arguments.size], torch.float32 if arguments.device == "cpu" else torch.bfloat16
        )
        yield Task(
            str(model),
            arguments.side,
            arguments.side,
            arguments.frames,
            rank=arguments.rank,
            device=arguments.device,
        )
