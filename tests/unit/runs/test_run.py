"""The figures of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config import TrainConfig
from trainer.lora_files.lora_weights import LoraWeights
from trainer.runs.run import Run


def make_run(losses: list[float]) -> Run:
    return Run(
        run_id="r",
        folder=Path("r"),
        config=TrainConfig(),
        lora=LoraWeights({"a": torch.zeros(1000)}),
        losses=losses,
        seconds=12.3,
        stopped=False,
        trained_parameters=1000,
        model_parameters=100_000,
    )


def test_run_summary() -> None:
    assert make_run([2.0] * 60 + [1.0] * 60).sentence() == (
        "done: 120 steps in 12 s, loss 2.000 -> 1.000; 1.0 % of the model's parameters, 0.0 MB"
    )
