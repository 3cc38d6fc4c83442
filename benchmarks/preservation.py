"""Does the model stay what it was? A new shape taught to the tiny Wan with and without differential output
preservation.

    python -m benchmarks.preservation [--json FILE] [--sheets FOLDER]

20 pictures of a T called "quib" train a LoRA with the demo's settings; then the new shape and the three that the
model knows are drawn, in every colour and background, and counted. Every run is a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.step_time import describe_machine
from benchmarks.worker import run_worker
from scripts.host_files import get_host, host_version

DEMO = {"steps": 500, "learning_rate": 0.002, "data_seed": 7}
KNOWN = "circle | square | triangle"
ARMS: dict[str, dict[str, Any]] = {
    "without": {"class_word": "", "weight": 1.0},
    "class: circle": {"class_word": "circle", "weight": 1.0},
    "class: shape (a word the model does not know)": {"class_word": "shape", "weight": 1.0},
    KNOWN: {"class_word": KNOWN, "weight": 1.0},
}


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of training and scores by strength and shape of one run."""
    return run_worker("preservation_worker.py", options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--samples", type=int, default=20, help="pictures of each shape")
    parser.add_argument("--strengths", default="0.8,1")
    parser.add_argument("--arms", default=",".join(str(i) for i in range(len(ARMS))))
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--sheets", type=Path, help="write pictures of what is drawn here")
    arguments = parser.parse_args()
    strengths = [float(s) for s in arguments.strengths.split(",")]
    chosen = [list(ARMS)[int(i)] for i in arguments.arms.split(",")]
    runs = []
    print("| class_word | seed | strength | new shape | circle | square | triangle | old ones | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for arm in chosen:
        for seed in map(int, arguments.seeds.split(",")):
            sheet = (
                arguments.sheets / f"{arm.split(' ')[0].strip(':')}_{seed}.png" if arguments.sheets else ""
            )
            options = {
                **DEMO,
                **ARMS[arm],
                "seed": seed,
                "samples": arguments.samples,
                "strengths": strengths,
                "sheet": str(sheet),
            }
            found = run(options)
            runs.append(found)
            for strength, scores in found["scores"].items():
                new, *old = scores.values()
                shares = [f"{s:.0%}" for s in (new, *old, statistics.fmean(old))]
                print(f"| {arm} | {seed} | {strength} | {' | '.join(shares)} | {found['seconds']:.0f} |")
            sys.stdout.flush()
    if arguments.json:
        head = {"machine": describe_machine("cpu"), "host": host_version(get_host())}
        arguments.json.write_text(json.dumps({**head, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
