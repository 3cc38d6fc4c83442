"""A run of the toy model in a process that may not have much more memory than it has at its beginning.

tests/unit/loop/little_memory_run.py FOLDER MEGABYTES
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

import scripts.cpu_torchvision  # noqa: F401 - before peft
from tests.unit.toy import CHANNELS, ToyDenoiser, make_config, make_encoded
from trainer.events import Event, MessageEvent
from trainer.loop.train import train


def run(folder: Path) -> dict[str, list]:
    """Two steps of eight items; about 40 MB an item are kept for the backward pass."""
    encoded = make_encoded(folder, count=8, shapes=((CHANNELS, 1, 256, 256),))
    seen: list[Event] = []
    config = make_config(steps=2, batch_size=8)
    result = train(ToyDenoiser(), encoded, config, run_folder=folder / "run", emit=seen.append)
    return {
        "losses": result.losses,
        "said": [event.text for event in seen if isinstance(event, MessageEvent)],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, megabytes = Path(sys.argv[1]), int(sys.argv[2])
    # What a first run loads belongs to the beginning
    train(ToyDenoiser(), make_encoded(folder / "small"), make_config(steps=2), run_folder=folder / "first")
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = own + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps(run(folder)))
