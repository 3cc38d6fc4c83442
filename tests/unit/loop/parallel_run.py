"""A run of the toy model by all processes that started this file; the main one writes the LoRA.

accelerate launch ... tests/unit/loop/parallel_run.py ITEMS_FOLDER OUTPUT.safetensors BATCH_SIZE
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from safetensors.torch import save_file

import scripts.cpu_torchvision  # noqa: F401 - before peft
from tests.unit.toy import ToyDenoiser, hold_out, make_config, make_encoded
from trainer.config import ValidationConfig
from trainer.errors import KilnError
from trainer.loop.distributed import AccelerateGroup, ProcessGroup
from trainer.loop.train import train
from trainer.runs.checkpoint import read_state
from trainer.runs.checkpoint_list import newest_checkpoint

folder, output, batch_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
group = AccelerateGroup() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ProcessGroup()
chosen = Path(group.broadcast_from_main(lambda: str(folder / f"run of {group.size}")))
long = "\u00e9" * 20_000
assert group.broadcast_from_main(lambda: long if group.is_main else "") == long


def refuse() -> str:
    raise KilnError("There is no such run.")


try:
    group.broadcast_from_main(refuse)
except KilnError as error:
    assert str(error) == "There is no such run."
else:
    raise AssertionError("what the main process is refused, all are")
# 7 items to train on: the last batch is too small for two processes at batch size 2, and once for both
encoded = hold_out(make_encoded(folder / f"items {group.rank}", count=9), 2)
config = make_config(steps=20, batch_size=batch_size, gradient_accumulation=2, ema_decay=0.9)
config = dataclasses.replace(config, validation=ValidationConfig(every=5), checkpoint_every=5)
result = train(ToyDenoiser(), encoded, config, run_folder=chosen, group=group)
if group.is_main:
    save_file(result.adapter, output)
    losses = {"losses": result.losses, "validation": [p.loss for p in result.validation]}
    newest = newest_checkpoint(chosen)
    assert newest is not None
    losses["items"] = read_state(newest).item_losses["usual"]
    output.with_suffix(".json").write_text(json.dumps({**losses, "processes": group.size}))
