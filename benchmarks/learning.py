"""How well and how fast does it learn? The tiny Wan's concept, by us and by the host's own trainer.

    python -m benchmarks.learning [--steps 100,200,400] [--json FILE]

Every run is a fresh process: encode the concept's pictures, train so many steps at the same rank, batch size and seed,
draw 20 pictures with the LoRA at 1.0 and count those that show the new shape. Only training is timed. The learning rate
is a choice that suits one trainer and not another (the host scales its LoRA by 1 / rank), so the host gets several.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.step_time import describe_machine
from benchmarks.worker import run_worker
from scripts.host_files import get_host, host_version

COMMON = {"rank": 16, "batch_size": 8, "seed": 0, "bypass": False}
OURS, HOST = (0.002,), (0.0005, 0.002, 0.008)  # learning rates; 0.0005 is the host's default


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds and score of one run."""
    return run_worker("learning_worker.py", options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", default="100,200,400")
    parser.add_argument("--bypass", action="store_true", help="the host's bypass mode, where it has one")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    runs = []
    print("| who | learning rate | steps | seconds | concept score |\n| --- | --- | --- | --- | --- |")
    for steps in map(int, arguments.steps.split(",")):
        for who, rates in (("ours", OURS), ("host", HOST)):
            for rate in rates:
                options = {
                    **COMMON,
                    "who": who,
                    "steps": steps,
                    "learning_rate": rate,
                    "bypass": arguments.bypass,
                }
                found = run(options)
                runs.append(found)
                print(f"| {who} | {rate:g} | {steps} | {found['seconds']:.1f} | {found['score']:.2f} |")
                sys.stdout.flush()
    if arguments.json:
        head = {"machine": describe_machine("cpu"), "host": host_version(get_host())}
        arguments.json.write_text(json.dumps({**head, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
