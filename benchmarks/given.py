"""Is what is given of pixels learned? Edit pairs, and a clip's first frame, on the tiny Wan.

    python -m benchmarks.given [--steps 1000] [--sheets FOLDER] [--json FILE]

The tiny Wan gets further input channels, as an image-to-video or Fun control model has them, whose weights are random
and stay so: what comes in there means nothing until a LoRA has learned it. The data set goes the whole way, from files
on disk; pictures are drawn by ComfyUI's own nodes for pictures that were not trained on.

    edit         a shape, and "make it blue": the same shape in its place on its background, in that colour
    first frame  a shape that moves to the right, caption "it moves": the clip begins with the frame that is given
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.step_time import describe_machine
from benchmarks.worker import worker_results
from scripts.host_files import get_host, host_version


def results(options: dict[str, Any]) -> list[dict[str, Any]]:
    """One of each."""
    return list(worker_results("given_worker.py", options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--items", type=int, default=200, help="that are trained on")
    parser.add_argument("--which", default="edit,first frame")
    parser.add_argument("--sheets", type=Path, help="a folder for what was given and drawn")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    options = {
        "steps": arguments.steps,
        "items": arguments.items,
        "pictures": 24,
        "which": arguments.which.split(","),
        "sheets": str(arguments.sheets.resolve()) if arguments.sheets else "",
    }
    found = results(options)
    print("| what | LoRA | shape | colour | background | in its place | decibels |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for each in found:
        for when, figures in each.items():
            if when != "what":
                cells = " | ".join(f"{value:.2f}" for value in figures.values())
                print(f"| {each['what']} | {when} | {cells} |")
    if arguments.json:
        head = {"machine": describe_machine("cpu"), "host": host_version(get_host()), **options}
        arguments.json.write_text(json.dumps({**head, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
