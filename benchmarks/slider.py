"""Does a slider move its attribute with every strength? On the tiny Wan, from words alone.

    python -m benchmarks.slider [--json FILE] [--sheets FOLDER]

The background's brightness on green shapes, and the colour of shapes: drawn at five strengths, the shape held against
the words. Every run is a fresh process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.step_time import describe_machine
from benchmarks.worker import run_worker
from scripts.host_files import get_host, host_version

COMMON: dict[str, Any] = {
    "guidance": 1.0,
    "latents": 16,
    "steps": 150,
    "batch_size": 4,
    "rank": 8,
    "learning_rate": 0.002,
    "seed": 0,
    "strengths": [-1, -0.5, 0, 0.5, 1],
}
SLIDERS: dict[str, dict[str, Any]] = {
    "background": {
        "target": "green on a gray background",
        "positive": "green on a white background",
        "negative": "green on a black background",
        "preserve": ["circle", "square", "triangle"],
        "draw": "a green {shape} on a gray background",
    },
    "red less blue": {
        "target": "a shape on a white background",
        "positive": "a red shape on a white background",
        "negative": "a blue shape on a white background",
        "preserve": [],
        "draw": "a {shape} on a white background",
    },
}


def run(options: dict[str, Any]) -> dict[str, Any]:
    """What slider_worker.py finds."""
    found = run_worker("slider_worker.py", options)
    found["losses"] = [found["losses"][0], found["losses"][-1]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=4, help="pictures of each shape and strength")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--sheets", type=Path, help="write pictures of what is drawn here")
    arguments = parser.parse_args()
    runs = []
    for measure, words in SLIDERS.items():
        sheet = str(arguments.sheets / f"slider_{measure.split()[0]}.png") if arguments.sheets else ""
        options = {**COMMON, **words, "measure": measure, "samples": arguments.samples, "sheet": sheet}
        found = run(options)
        runs.append(found)
        strengths = found["strengths"]
        print(f"| strength | {' | '.join(strengths)} |\n| --- |{' --- |' * len(strengths)}")
        print(f"| {measure} | {' | '.join(f'{v[measure]:.0f}' for v in strengths.values())} |")
        print(f"| shape kept | {' | '.join(format(v['shape kept'], '.0%') for v in strengths.values())} |\n")
    if arguments.json:
        head = {"machine": describe_machine("cpu"), "host": host_version(get_host())}
        arguments.json.write_text(json.dumps({**head, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
