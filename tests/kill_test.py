"""Kill -9 at random moments of a run, resume each time, and compare with the run that nothing befell.

    python -m tests.kill_test [--kills 20] [--steps 200] [--seed 0]

Prints one line for every kill: when it came, what was newest on disk, whether every checkpoint there was whole; at the
end whether the LoRA is the same bit for bit. The run is the toy model's, with everything on that has a memory: dropout,
accumulation, items of two sizes, validation, a running mean, a checkpoint every 3 steps. tests/unit/runs/test_kill.py
runs a shorter one.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import scripts.cpu_torchvision  # noqa: F401 - before peft
from tests.unit.toy import ToyDenoiser, hold_out, make_config, make_encoded
from trainer.config import ValidationConfig
from trainer.events import Event, StepEvent
from trainer.loop.train import train
from trainer.runs.checkpoint import read_adapter
from trainer.runs.checkpoint_list import find_checkpoints

REPO = Path(__file__).resolve().parents[1]
SHAPES = ((4, 1, 2, 2), (4, 1, 2, 3))


def run(folder: Path, steps: int) -> None:
    """Train, or go on from the newest checkpoint; leaves lora.safetensors. Prints every step."""
    encoded = hold_out(make_encoded(folder / "items", count=9, shapes=SHAPES), 2)
    config = make_config(steps=steps, dropout=0.2, gradient_accumulation=2, ema_decay=0.95)
    config = dataclasses.replace(config, checkpoint_every=3, validation=ValidationConfig(every=5))
    found = find_checkpoints(folder / "run")

    def tell(event: Event) -> None:
        if isinstance(event, StepEvent):
            print(event.step, flush=True)

    result = train(
        ToyDenoiser(),
        encoded,
        config,
        run_folder=folder / "run",
        resume_from=found[-1] if found else None,
        emit=tell,
    )
    save_file(result.adapter, folder / "lora.safetensors")


def start(folder: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.kill_test", "--child", str(folder), "--steps", str(steps)]
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)


def kill_test(kills: int, steps: int, seed: int) -> bool:
    """True when the LoRA after all kills is the uninterrupted one."""
    draws = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        alone = start(base / "alone", steps)
        alone.communicate()
        print(f"a run of {steps} steps\nkill  in step  +ms  newest whole   left half-written")
        folder = base / "killed"
        for number in range(1, kills + 1):
            # So many steps further, then at any moment: between two steps, in one, while a checkpoint is written
            further, pause = draws.randint(1, max(1, 2 * steps // kills - 4)), draws.uniform(0.0, 0.06)
            process = start(folder, steps)
            assert process.stdout is not None
            step = 0
            for _, line in zip(range(further), process.stdout, strict=False):
                step = int(line)
            time.sleep(pause)
            process.kill()
            process.communicate()
            found = find_checkpoints(folder / "run")
            half = sorted(p.name for p in (folder / "run").glob(".*"))
            for path in found:
                read_adapter(path)  # checks the hash
            newest = found[-1].name if found else "none"
            print(
                f"{number:4}  {step + 1:7}  {1000 * pause:3.0f}  {newest:13}  {', '.join(half) or '-'}",
                flush=True,
            )
        last = start(folder, steps)
        last.communicate()
        expected, found_lora = (load_file(base / n / "lora.safetensors") for n in ("alone", "killed"))
        same = expected.keys() == found_lora.keys() and all(
            torch.equal(expected[k], found_lora[k]) for k in expected
        )
        print("the LoRA is bit-identical" if same else "THE LORA DIFFERS")
        return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run(Path(arguments.child), arguments.steps)
        return 0
    return 0 if kill_test(arguments.kills, arguments.steps, arguments.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
