"""What a training step needs of memory at every memory level: planned before it runs, and measured.

    python -m benchmarks.memory_plan [--size 65m] [--side 32] [--rank 16] [--json FILE]

Every level trains the same Wan-shaped model with random weights in a fresh process, by the whole engine. Parts that can
be counted are counted while it runs (weights of the placement's ledger, adapter, gradients, optimizer); activations are
what autograd keeps. On a CPU the peak is that of the resident set above the loaded model: streaming blocks cannot lower
it, as the model is in the same memory, and adds its two blocks; streaming from the file makes the weights pages of the
file, which a resident set counts too. On CUDA the peak is the allocator's, weights included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.host_process import Task
from benchmarks.step_time import describe_machine
from benchmarks.wan_task import task_parser, written_task
from scripts.host_files import ensure_venv, get_host, host_version

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations")
CASES: dict[str, dict[str, Any]] = {
    "resident": {"level": "resident"},
    "resident, fp8 base": {"level": "resident", "base_precision": "fp8"},
    "checkpoint activations": {"level": "checkpoint activations"},
    "checkpoint activations, inputs offloaded": {
        "level": "checkpoint activations",
        "offload_block_inputs": True,
    },
    "stream blocks": {"level": "stream blocks"},
    "stream blocks, fp8 base": {"level": "stream blocks", "base_precision": "fp8"},
    "stream blocks, nf4 base": {"level": "stream blocks", "base_precision": "nf4"},
    "stream blocks, inputs offloaded": {"level": "stream blocks", "offload_block_inputs": True},
    "stream blocks, inputs offloaded, parts apart": {
        "level": "stream blocks",
        "offload_block_inputs": True,
        "recompute_parts": True,
    },
    "stream from file": {"level": "stream from file"},
}


def measure(task: Task, memory: dict[str, Any], steps: int) -> dict[str, Any]:
    """One case in a process of its own; see memory_worker.py."""
    host = get_host()
    worker = Path(__file__).with_name("memory_worker.py")
    done = subprocess.run(
        [str(ensure_venv(host)), str(worker), json.dumps(asdict(task)), json.dumps(memory), str(steps)],
        cwd=host,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{memory} ended:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: dict[str, Any]) -> str:
    """For people: planned / measured, MB."""
    task = found["task"]
    lines = [
        f"Wan shape {task['size']}: {task['tokens']} tokens, {task['text']} text tokens, rank {task['rank']}, batch 1, "
        f"{task['device']}; MB, planned / measured",
        f"{found['machine']}; ComfyUI {found['host']}; {found['date']}",
        "",
        f"| level | {' | '.join(PARTS)} | peak above the model | step |",
        f"| --- |{' --- |' * (len(PARTS) + 2)}",
    ]
    for name, case in found["levels"].items():
        cells = [f"{case['planned'][p] / 1e6:.1f} / {case['measured'][p] / 1e6:.1f}" for p in PARTS]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {case['peak_bytes'] / 1e6:.0f} | {case['seconds']:.2f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = task_parser(__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", default="", help="cases whose names hold this")
    arguments = parser.parse_args()
    cases = {name: memory for name, memory in CASES.items() if arguments.only in name}
    with written_task(arguments) as task:
        levels = {name: measure(task, memory, arguments.steps) for name, memory in cases.items()}
    found = {
        "date": date.today().isoformat(),
        "machine": describe_machine(arguments.device),
        "host": host_version(get_host()),
        "task": {**asdict(task), "model": "", "tokens": task.tokens, "size": arguments.size},
        "levels": levels,
    }
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
