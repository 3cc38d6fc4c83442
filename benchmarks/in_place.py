"""What it costs to train a network that writes in place (Flux): ours, and plain peft under torch's own cure.

    python -m benchmarks.in_place [--rounds 8] [--json FILE]

One process in the host: a Flux shape of 60 M parameters with random weights, fp32, batch 1. In turns, forward and
backward without the optimizer:

    floor        the frozen forward, twice
    ours         memory/copy_on_write.py under our fused layers
    peft         peft's layers under torch.autograd.graph.allow_mutation_on_saved_tensors

The gradients of the last two are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from scripts.host_files import get_host


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="measured turns of each")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    worker = Path(__file__).with_name("in_place_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(arguments.rounds)],
        cwd=get_host(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    floor = statistics.median(found["seconds"]["floor"])
    print(f"{found['parameters'] / 1e6:.0f} M parameters, {found['tokens']} tokens, host {found['host']}")
    for name, seconds in found["seconds"].items():
        median = statistics.median(seconds)
        print(f"{name:8} {median:.3f} s  {median / floor:.2f} x the floor")
    print(f"copies of saved tensors: {found['copies']}; difference of the gradients: {found['error']:.1e}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
