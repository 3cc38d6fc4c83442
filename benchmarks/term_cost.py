"""What a step costs with differential output preservation, and as a slider, to a plain one; on the tiny Wan, batch 8.

    python -m benchmarks.term_cost [--json FILE]

In turns in one process, in seconds of one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

from benchmarks.step_time import describe_machine
from scripts.host_files import ensure_venv, get_host, host_version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    host = get_host()
    worker = Path(__file__).with_name("term_cost_worker.py")
    done = subprocess.run(
        [str(ensure_venv(host)), str(worker)], cwd=host, capture_output=True, text=True, check=True
    )
    seconds = json.loads(done.stdout.splitlines()[-1])
    plain = statistics.median(seconds["plain"])
    print("| step | seconds of one core | to a plain one |\n| --- | --- | --- |")
    for kind, found in seconds.items():
        middle = statistics.median(found)
        print(f"| {kind} | {middle:.3f} | {middle / plain:.2f} x |")
    if arguments.json:
        head = {"machine": describe_machine("cpu"), "host": host_version(get_host())}
        arguments.json.write_text(json.dumps({**head, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
