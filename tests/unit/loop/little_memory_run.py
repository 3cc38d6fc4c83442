"""A run of the toy model in a process that may not have much more memory than it has at its beginning.

tests/unit/loop/little_memory_run.py FOLDER MEGABYTES(0: as much as there is)
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

torch.set_num_threads(1)
folder, megabytes = Path(sys.argv[1]), int(sys.argv[2])
# About 90 MB an item are kept for the backward pass
encoded = make_encoded(folder, count=8, shapes=((CHANNELS, 1, 384, 384),))
config = make_config(steps=2, batch_size=8)
train(ToyDenoiser(), make_encoded(folder / "small"), make_config(steps=2), run_folder=folder / "first")
if megabytes:
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = own + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
seen: list[Event] = []
result = train(ToyDenoiser(), encoded, config, run_folder=folder / "run", emit=seen.append)
said = [event.text for event in seen if isinstance(event, MessageEvent)]
print(json.dumps({"losses": result.losses, "said": said}))
