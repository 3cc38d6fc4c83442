"""How long a training step takes and how much memory it needs: us, the host's own trainer, plain peft and the floor.

    python -m benchmarks.step_time [--size 65m] [--side 32] [--rank 16] [--processor-time] [--json FILE]

Every contestant trains the same Wan-shaped model with random weights in a process of its own, all of them loaded at the
same time, and they take turns of a few steps each, so that whatever else the machine does hits all alike. The floor is
twice the frozen forward: one pass forward, one for the gradient of the input. Memory is the peak above the loaded
model: the resident set on a CPU, the allocator's peak on CUDA.

`adapter_bound` is the floor plus what the adapters themselves compute: three times their share of the forward's
multiplications (forward, gradient of the input, gradient of the matrices).

On a machine that does other work beside, `--processor-time` counts what the processor does for each, on one thread.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.host_process import PROCESSOR_TIME, Task
from benchmarks.wan_shape import SHAPES, WanShape
from benchmarks.wan_task import task_parser, written_task
from scripts.host_files import ensure_venv, get_host, host_version

CONTESTANTS: tuple[str, ...] = ("floor", "ours", "preserving", "slider", "routed", "peft")
CONTESTANTS += ("host_default", "host_weight", "host_bypass")
TITLES = {
    "floor": "frozen forward, twice",
    "ours": "LoRA Kiln",
    "preserving": "LoRA Kiln, with differential output preservation",
    "slider": "LoRA Kiln, a slider",
    "routed": "LoRA Kiln, half of the tokens past the middle blocks",
    "peft": "peft, plain loop",
    "host_default": "TrainLoraNode, defaults (weight mode, checkpointing)",
    "host_weight": "TrainLoraNode, weight mode",
    "host_bypass": "TrainLoraNode, bypass mode",
}


@dataclass
class Figures:
    """What one contestant showed."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Contestant:
    """A worker process that trains when it is told to."""

    def __init__(self, name: str, task: Task, python: Path, host: Path) -> None:
        worker = Path(__file__).with_name("step_worker.py")
        self.name, self.figures, self.absent = name, Figures(), ""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [str(python), str(worker), name, json.dumps(asdict(task))],
            cwd=host,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.absent = self._listen().get("absent", "")

    def go(self, steps: int) -> list[float]:
        """Seconds of the next steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"go {steps}\n")
        self._process.stdin.flush()
        seconds: list[float] = self._listen()["seconds"]
        return seconds

    def end(self) -> None:
        """Ask for the peak and wait until the process is gone."""
        assert self._process.stdin is not None
        if not self.absent:
            self._process.stdin.close()
            self.figures.peak_bytes = self._listen()["peak_bytes"]
        self._process.wait(30)

    def _listen(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self.name} ended:\n{self._log.read()[-3000:]}")
        message: dict[str, Any] = json.loads(line)
        return message


def adapter_bound(shape: WanShape, tokens: int, text: int, rank: int) -> float:
    """The floor with the adapters' own arithmetic, as a ratio to the floor. Multiplications of linear layers and
    attention of the blocks are counted; the rest is small."""
    dim = shape.dim
    image = 6 * dim * dim + 2 * dim * shape.ffn  # parameters that see image tokens: q k v o, q o, ffn
    words = 2 * dim * dim  # k v of the text
    attention = 2 * tokens * (tokens + text) * dim
    frozen = tokens * image + text * words + attention
    adapters = rank * (tokens * (6 * 2 * dim + 2 * (dim + shape.ffn)) + text * 2 * 2 * dim)
    return 1 + 3 * adapters / (2 * frozen)


def measure(task: Task, names: list[str], rounds: int, steps: int, warm_up: int) -> dict[str, Figures]:
    """All contestants in turns; those that the host does not have are left out."""
    host = get_host()
    python = ensure_venv(host)
    contestants = []
    for name in names:
        contestant = Contestant(name, task, python, host)
        if contestant.absent:
            contestant.end()
            print(f"{name}: {contestant.absent}", file=sys.stderr)
            continue
        contestant.go(warm_up)
        contestants.append(contestant)
    for _ in range(rounds):
        for contestant in contestants:
            contestant.figures.seconds += contestant.go(steps)
    for contestant in contestants:
        contestant.end()
    return {c.name: c.figures for c in contestants}


def summary(task: Task, shape: WanShape, figures: dict[str, Figures], host: str) -> dict[str, Any]:
    """Everything that was measured, and the ratios that count."""
    floor = 2 * figures["floor"].median
    hosts = {k: f for k, f in figures.items() if k.startswith("host")}
    plain = {k: f for k, f in hosts.items() if k != "host_default"}
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": describe_machine(task.device),
        "host": host,
        "task": {**asdict(task), "model": "", "tokens": task.tokens, **asdict(shape)},
        "floor_seconds": floor,
        "adapter_bound": adapter_bound(shape, task.tokens, task.text, task.rank),
        "contestants": {
            name: {
                "seconds": floor if name == "floor" else f.median,
                "ratio_to_floor": 1.0 if name == "floor" else f.median / floor,
                "peak_bytes": f.peak_bytes,
                "steps": len(f.seconds),
            }
            for name, f in figures.items()
        },
    }
    if "ours" in figures:
        found["ratio_to_floor"] = figures["ours"].median / floor
        if "host_default" in hosts:
            found["speedup_vs_host_default"] = hosts["host_default"].median / figures["ours"].median
        if hosts:
            best = min(f.median for f in hosts.values())
            found["speedup_vs_host_best"] = best / figures["ours"].median
        if plain:
            found["memory_vs_host_best"] = figures["ours"].peak_bytes / min(
                f.peak_bytes for f in plain.values()
            )
    return found


def describe_machine(device: str) -> str:
    """The processor, or the card, and torch."""
    import torch

    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{os.cpu_count()} x {names[0] if names else platform.processor()}, torch {torch.__version__}"


def table(found: dict[str, Any]) -> str:
    """For people."""
    task = found["task"]
    lines = [
        f"Wan shape: dim {task['dim']}, ffn {task['ffn']}, {task['layers']} layers; {task['tokens']} tokens, "
        f"{task['text']} text tokens, rank {task['rank']}, batch 1, {task['device']}",
        f"{found['machine']}; ComfyUI {found['host']}; {found['date']}",
        "",
        "| what | step | to the floor | peak above the model |",
        "| --- | --- | --- | --- |",
    ]
    for name, f in found["contestants"].items():
        lines.append(
            f"| {TITLES[name]} | {f['seconds']:.3f} s | {f['ratio_to_floor']:.2f} x | {f['peak_bytes'] / 1e6:.0f} MB |"
        )
    lines.append(f"\nThe floor with the adapters' own arithmetic: {found['adapter_bound']:.3f} x")
    return "\n".join(lines)


def main() -> None:
    parser = task_parser(__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--processor-time", action="store_true", help="instead of the clock's, on one thread")
    parser.add_argument("--only", default="", help="contestants, with commas; the floor is always there")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.size]
    names = [n for n in CONTESTANTS if n == "floor" or not arguments.only or n in arguments.only.split(",")]
    if arguments.processor_time:
        os.environ.update({PROCESSOR_TIME: "1", "OMP_NUM_THREADS": "1"})
    with written_task(arguments) as task:
        figures = measure(task, names, arguments.rounds, arguments.steps, warm_up=3)
    found = summary(task, shape, figures, host_version(get_host()))
    found["clock"] = "processor time, one thread" if arguments.processor_time else "wall"
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
