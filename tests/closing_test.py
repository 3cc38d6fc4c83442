"""Close a real ComfyUI by SIGINT or SIGTERM at random moments of a graph that encodes, trains, samples and saves.

    python -m tests.closing_test [--times 20] [--seed 0] [--within 12]

Every server is a new one on the same workspace. One line for each: the signal, the moment after the graph was queued,
what the server was doing, its exit status, and what is wrong: a traceback or an abort in its log, a half-written file.
tests/host/test_background.py closes at a few moments that have failed before.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from scripts.host import RunningHost, start_host
from scripts.host_client import HostClient
from scripts.host_files import workspace
from tests.host.graphs import dataset, loaders, node, sampling, saved, training

HOSTS_OWN = re.compile(
    # A connection to the host's own database, which its start leaves as garbage: whichever thread collects it complains
    r"Traceback[^\n]*\n(?: [^\n]*\n)+sqlite3\.ProgrammingError: SQLite objects created in a thread"
)
WRONG = re.compile(r"Traceback|Fatal Python|terminate called|Aborted|core dumped|lora.kiln.*(rror|xception)")


def graph(seed: int, mode: str = "wait") -> dict[str, Any]:
    """Encoding (nothing is in the cache), a run with samples, and what comes after it."""
    samples = {
        "prompts": f"a red circle {seed}\na blue square",
        "negative_prompt": "",
        **{"every": 3, "at_start": True, "width": 64, "height": 64, "length": 5, "fps": 16.0},
        **{"sampler_steps": 6, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"},
        **{"sample_seed": 5, "pictures": 1, "strength": 1.0},
    }
    found = {
        **loaders(),
        **dataset(),
        "captions": node(
            "KilnCaptionTemplate",
            **{"dataset": ["dataset", 0], "template": "", "values": "", "trigger_word": f"zorb{seed}"},
            **{"missing": "drop clause", "seed": 0},
        ),
        **training(steps=40, seed=seed, checkpoint_every=5, when_queued=mode),
        "samples": node("KilnSampleSettings", clip=["clip", 0], vae=["vae", 0], **samples),
        **saved(filename_prefix="closing/lora"),
        **sampling("drawn", ["train", 1], batch=1),
    }
    found["encoded"]["inputs"]["dataset"] = ["captions", 0]
    found["train"]["inputs"]["settings"] = ["samples", 0]
    return found


def close_at(
    running: RunningHost, number: signal.Signals, after: float, prompt: dict[str, Any]
) -> tuple[str, int]:
    """Queue, wait, send the signal; what the log said last by then, and the exit status."""
    HostClient(running.url).queue_prompt(prompt)
    time.sleep(after)
    doing = (running.read_log().splitlines() or [""])[-1][-60:]
    running.process.send_signal(number)
    return doing, running.process.wait(120)


def faults(running: RunningHost, number: signal.Signals, status: int) -> list[str]:
    """What is wrong with how a server ended."""
    log = running.read_log().partition("got prompt")[2]  # before it, hosts report their own missing packages
    found = sorted({match[0] for match in WRONG.finditer(HOSTS_OWN.sub("", log))})
    if status not in (0, -number):
        found.append(f"exit status {status}")
    return found


def leftovers(base: Path) -> list[str]:
    """Half-written files of ours; of a process that was killed, the next start may still find them."""
    return [str(p.relative_to(base)) for p in (base / "user", base / "output") for p in p.rglob(".*tmp*")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=12.0, help="seconds after queueing")
    arguments = parser.parse_args()
    draws, base, wrong = random.Random(arguments.seed), workspace("closing", fresh=True), 0
    for number in range(1, arguments.times + 1):
        sign = draws.choice([signal.SIGINT, signal.SIGTERM])
        after = draws.choice([0.0, 0.03, draws.uniform(0.0, 2.0), draws.uniform(0.0, arguments.within)])
        mode = draws.choice(["wait", "continue in background"])
        with start_host(base, python=Path(sys.executable), cpu=True) as running:
            doing, status = close_at(running, sign, after, graph(arguments.seed * 1000 + number, mode))
            found = faults(running, sign, status)
        if status != -sign:
            found += leftovers(base)
        wrong += bool(found)
        print(
            f"{number:3} {sign.name:8} {mode[:8]:8} {after:6.2f} s  {status:4}  {doing!r}  {found or 'held'}",
            flush=True,
        )
    print(f"{arguments.times - wrong} of {arguments.times} held")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
