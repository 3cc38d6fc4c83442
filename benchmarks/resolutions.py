"""Does training at several resolutions pay? The concept taught to the tiny Wan at one size and at two, drawn at each.

    python -m benchmarks.resolutions [--steps 300] [--seeds 1] [--sheets FOLDER] [--json FILE]

20 pictures of 128 pixels of the shape that the model has never seen, the demo's settings; 64 pixels is the size that
the model knows. All runs take the same number of steps, so at two sizes each has half of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.step_time import describe_machine
from benchmarks.worker import worker_results
from scripts.host_files import get_host, host_version

TRAINED = ([64], [96], [64, 96])
DRAWN = (64, 96)


def results(options: dict[str, Any]) -> list[dict[str, Any]]:
    """One of each training, and one without a LoRA."""
    return list(worker_results("resolutions_worker.py", options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sheets", type=Path, help="a folder for what was drawn")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    options = {
        "steps": arguments.steps,
        "seeds": list(range(arguments.seeds)),
        "trained": [*TRAINED, []],
        "drawn": DRAWN,
        "prompts": 4,
        "pictures": 5,  # of each
        "strength": 0.8,
        "sheets": str(arguments.sheets.resolve()) if arguments.sheets else "",
    }
    found = results(options)
    print(f"| trained at | {' | '.join(f'drawn at {size}' for size in DRAWN)} |")
    print("| --- |" + " --- |" * len(DRAWN))
    for trained in options["trained"]:
        runs = [each for each in found if each["trained"] == trained]
        shares = [sum(run["scores"][str(size)] for run in runs) / len(runs) for size in DRAWN]
        cells = [f"{share:.0%}" for share in shares]
        print(f"| {', '.join(map(str, trained)) or 'no LoRA'} | {' | '.join(cells)} |")
    if arguments.json:
        del options["sheets"]
        head = {"machine": describe_machine("cpu"), "host": host_version(get_host()), **options}
        arguments.json.write_text(json.dumps({**head, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
