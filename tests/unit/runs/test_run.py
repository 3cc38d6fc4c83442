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


def test_a_run_without_a_step_has_no_figures() -> None:
    assert make_run([]).sentence() == "stopped before the first step: nothing was learned"


def test_a_short_run_has_a_first_and_a_last_loss() -> None:
    for count in range(2, 60):
        summary = make_run([float(count - i) for i in range(count)]).summary()
        assert summary["first_loss"] > summary["last_loss"], count
    eight = make_run([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]).summary()
    assert (eight["first_loss"], eight["last_loss"]) == (8.0, 1.0)
