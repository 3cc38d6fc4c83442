"""Does token routing (TREAD, token_route.py) pay for a LoRA? The tiny Wan's concept score against seconds.

    python -m benchmarks.token_routing [--seeds 5] [--steps 100,200,400] [--shares 0,0.5] [--json FILE]

What a step costs: `python -m benchmarks.step_time`, whose contestant `routed` sends half of the tokens past all
blocks but the first and the last. The LoRA is always used without the route. Seconds are the processor's, which other
work on the machine does not stretch; OMP_NUM_THREADS=1 makes them those of a machine at rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.learning import COMMON, OURS
from benchmarks.step_time import describe_machine
from benchmarks.worker import worker_results
from scripts.host_files import get_host, host_version


def results(asked: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each run as it ends, all in one process."""
    # The worker's answers first: it is then read to its end, where a failure is noticed
    for found, options in zip(worker_results("learning_worker.py", asked), asked, strict=False):
        yield {**options, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", default="100,200,400")
    parser.add_argument("--shares", default="0,0.5", help="of the tokens that go past the middle blocks")
    parser.add_argument("--json", type=Path, help="write all figures here, after every run")
    arguments = parser.parse_args()
    head = {"machine": describe_machine("cpu"), "host": host_version(get_host())}
    shares = [float(share) for share in arguments.shares.split(",")]
    asked = [  # in turns: what else the machine does hits all alike
        {**COMMON, "who": "ours", "learning_rate": OURS[0], "steps": steps, "seed": seed, "route": share}
        for steps in map(int, arguments.steps.split(","))
        for seed in range(arguments.seeds)
        for share in shares
    ]
    runs: list[dict[str, Any]] = []
    for found in results(asked):
        runs.append(found)
        if arguments.json:
            arguments.json.write_text(json.dumps({**head, "runs": runs}, indent=1) + "\n")
    print(
        "| steps | share | seconds | concept score, mean of the seeds | each |\n| --- | --- | --- | --- | --- |"
    )
    for steps, share in dict.fromkeys((each["steps"], each["route"]) for each in runs):
        those = [each for each in runs if (each["steps"], each["route"]) == (steps, share)]
        scores = [each["score"] for each in those]
        seconds = statistics.median(each["processor_seconds"] for each in those)
        listed = " ".join(f"{score:.2f}" for score in scores)
        print(f"| {steps} | {share:g} | {seconds:.1f} | {statistics.fmean(scores):.2f} | {listed} |")


if __name__ == "__main__":
    main()
