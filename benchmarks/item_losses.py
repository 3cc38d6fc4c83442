"""How often does a run name an item that is wrong, and how often one that is not? The tiny Wan's concept.

    python -m benchmarks.item_losses [--runs 12] [--steps 200] [--json FILE]

Every run trains on another 20 pictures of the concept, as they are or with the first one made wrong: its caption names
another colour or another shape, or its picture is noise. Counted is what `trainer/runs/item_losses.py` says of it after
the last step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scripts.cpu_torchvision  # noqa: F401 - before the engine
from benchmarks.step_time import describe_machine
from benchmarks.worker import worker_results
from scripts.host_files import get_host, host_version
from trainer.runs.item_losses import ItemLosses

KINDS = {
    "": "nothing",
    "colour": "caption: another colour",
    "shape": "caption: another shape",
    "noise": "noise",
}


def results(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of each run as it ends, all in one process."""
    return worker_results("item_losses_worker.py", options)


def table(runs: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        "| wrong | runs | it is the highest | it is named | another is named |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, words in KINDS.items():
        known = [ItemLosses(**run["items"]) for run in runs if run["how"] == kind]
        if not known:
            continue
        named = [k.standing_out([0] * len(k.draws)) for k in known]
        first = "" if not kind else sum(k.ranked()[0] == 0 for k in known)
        found = "" if not kind else sum(0 in n for n in named)
        others = sum(any(i or not kind for i in n) for n in named)
        lines.append(f"| {words} | {len(known)} | {first} | {found} | {others} |")
    return "\n".join(lines)


def _short(items: dict[str, Any]) -> dict[str, Any]:
    """What the table is made of, in few digits."""
    rounded = {name: [round(value, 4) for value in items[name]] for name in ("excess", "loss")}
    return {"draws": items["draws"], **rounded, "scatter": round(items["scatter"], 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=12, help="of each kind")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write what each run knew of its items here")
    arguments = parser.parse_args()
    options = {
        "items": 20,
        "steps": arguments.steps,
        "batch_size": 4,
        "runs": arguments.runs,
        "kinds": list(KINDS),
    }
    head = {"machine": describe_machine("cpu"), "host": host_version(get_host()), **options}
    runs = []
    for found in results(options):
        runs.append({**found, "items": _short(found["items"])})
        if arguments.json:  # after every run
            arguments.json.write_text(json.dumps({**head, "found": runs}) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
