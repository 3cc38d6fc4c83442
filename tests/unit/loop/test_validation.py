"""The validation loss, best and early stop, and the advice: on curves made for it and on real tiny runs."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from trainer.config import ObjectiveConfig, TrainConfig, ValidationConfig
from trainer.dataset.batches import ItemStore
from trainer.events import Event, ValidationEvent, ValidationPoint, best_of
from trainer.loop.train import train
from trainer.loop.validation import fixed_levels, is_over, measure
from trainer.runs.checkpoint import read_output

from ..toy import ToyDenoiser, hold_out, make_config, make_encoded


def points(*values: float, every: int = 100) -> list[ValidationPoint]:
    """Measured at 0, every, 2 * every, ..."""
    return [ValidationPoint(i * every, v, [v]) for i, v in enumerate(values)]


def noisy(*ends: float, steps: int = 500, noise: float = 0.02, seed: int = 0) -> list[float]:
    """A straight line from one end to the other, with scatter."""
    draws = random.Random(seed)
    first, last = ends[0], ends[-1]
    return [first + (last - first) * i / (steps - 1) + draws.gauss(0, noise) for i in range(steps)]


def test_levels_are_the_quantiles_of_what_training_draws() -> None:
    config = TrainConfig(objective=ObjectiveConfig(timestep_sampling="uniform", shift=1.0))
    torch.testing.assert_close(
        fixed_levels(config, ToyDenoiser(), (4, 2, 2)),
        torch.tensor([0.125, 0.375, 0.625, 0.875]),
        rtol=0,
        atol=0.02,
    )
    cut = TrainConfig(objective=make_config().objective)
    cut = dataclasses.replace(
        cut, objective=dataclasses.replace(cut.objective, min_timestep=0.2, max_timestep=0.4)
    )
    assert all(0.2 < x < 0.4 for x in fixed_levels(cut, ToyDenoiser(), (4, 2, 2)).tolist())


def test_measuring_twice_gives_the_same_whatever_happens_between(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    denoiser, config = ToyDenoiser(), make_config()
    with denoiser.session():
        first = measure(denoiser, ItemStore(encoded.items), config, 1)
        torch.randn(100)
        assert measure(denoiser, ItemStore(encoded.items), dataclasses.replace(config, seed=9), 1) == first
    assert len(first.bands) == 4 and first.loss == pytest.approx(sum(first.bands) / 4)


def test_validation_changes_nothing_of_the_training(tmp_path: Path) -> None:
    encoded = hold_out(make_encoded(tmp_path, count=6), 2)
    config = make_config(dropout=0.2, ema_decay=0.9)
    often = dataclasses.replace(config, validation=ValidationConfig(every=1))
    never = dataclasses.replace(config, validation=ValidationConfig(every=0))
    seen: list[Event] = []
    a = train(ToyDenoiser(), encoded, often, run_folder=tmp_path / "a", emit=seen.append)
    b = train(ToyDenoiser(), encoded, never, run_folder=tmp_path / "b")
    assert a.losses == b.losses and all(torch.equal(a.adapter[k], b.adapter[k]) for k in a.adapter)
    assert [e.step for e in seen if isinstance(e, ValidationEvent)] == list(range(7))
    assert b.validation == []


def test_early_stop_and_the_best_weights(tmp_path: Path) -> None:
    encoded = hold_out(make_encoded(tmp_path, count=6), 2)
    config = make_config(steps=60, learning_rate=0.3, rank=16, schedule="constant")
    chosen = ValidationConfig(every=3, patience=3, result="best")
    result = train(
        ToyDenoiser(), encoded, dataclasses.replace(config, validation=chosen), run_folder=tmp_path / "run"
    )
    best = best_of(result.validation)
    assert best is not None and result.stopped_early and not result.stopped
    assert result.step == best.step + 9 and result.adapter_step == best.step
    saved = read_output(tmp_path / "run" / f"step-{best.step:08d}")
    assert all(torch.equal(saved[k], result.adapter[k]) for k in saved)


def test_patience_counts_measurements_after_the_best() -> None:
    assert not is_over(points(1, 0.5, 0.6), 2) and is_over(points(1, 0.5, 0.6, 0.7), 2)
    assert not is_over(points(1, 0.5, 0.6, 0.7, 0.4), 2) and not is_over(points(1, 2, 3, 4), 0)
