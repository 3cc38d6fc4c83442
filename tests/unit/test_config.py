"""Settings: ranges are enforced with a sentence, and the guide's figures are where it puts them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainer.config import PRESETS, AdapterConfig, ObjectiveConfig, OptimizerConfig, TrainConfig, field_info
from trainer.errors import KilnError
from trainer.optim import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdapterConfig(rank=0), "rank is 0; it must lie between 1 and 1024"),
        (lambda: OptimizerConfig(learning_rate=float("nan")), "learning_rate is nan; give a finite number"),
        (
            lambda: OptimizerConfig(schedule="sawtooth"),
            "schedule is 'sawtooth'; choose one of constant, linear",
        ),
        (lambda: ObjectiveConfig(min_timestep=0.5, max_timestep=0.5), "the minimum must be smaller"),
        (lambda: TrainConfig(steps=0), "steps is 0; it must lie between 1 and 1e"),
        (lambda: TrainConfig.from_dict({"stepz": 3}), "Unknown setting 'stepz'; known here are adapter"),
    ],
)
def test_impossible_values_are_refused(make: object, message: str) -> None:
    with pytest.raises(KilnError, match=message):
        make()  # type: ignore[operator]


def test_dict_round_trip() -> None:
    config = TrainConfig(
        steps=7, adapter=AdapterConfig(rank=3, alpha=1.5), objective=ObjectiveConfig(shift=8.0)
    )
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_every_setting_explains_itself() -> None:
    for config in (TrainConfig, AdapterConfig, OptimizerConfig, ObjectiveConfig):
        for name, field in field_info(config).items():
            assert len(field.metadata["doc"]) > 20, name
            if isinstance(field.default, (int, float)):
                assert field.metadata["minimum"] <= field.default <= field.metadata["maximum"], name


def test_presets_are_the_guides_recipes() -> None:
    assert PRESETS["quick trial"]["rank"] == 32 and PRESETS["quick trial"]["steps"] == 500
    assert PRESETS["standard"]["rank"] == 64 and PRESETS["standard"]["steps"] == 1500
    assert PRESETS["character"]["rank"] == 96 and PRESETS["character"]["steps"] == 2000
    widgets = {"steps", "learning_rate", "rank", "alpha", "batch_size"}
    assert all(set(preset) == widgets for preset in PRESETS.values())


def rates(config: TrainConfig, done: int = 0) -> list[float]:
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], config)
    schedule = make_schedule(optimizer, config, done)
    found = []
    for _ in range(done, config.steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_and_cosine_by_formula() -> None:
    config = TrainConfig(steps=100, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.1))
    expected = [1e-3 * s / 10 for s in range(10)]
    expected += [1e-3 * 0.5 * (1 + math.cos(math.pi * (s - 10) / 90)) for s in range(10, 100)]
    assert rates(config) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_goes_on_where_it_was(schedule: str) -> None:
    config = TrainConfig(steps=40, optimizer=OptimizerConfig(schedule=schedule))
    assert rates(config)[17:] == rates(config, done=17)


def test_warmup_never_eats_the_run() -> None:
    assert TrainConfig(steps=1, optimizer=OptimizerConfig(warmup_ratio=1.0)).warmup_steps == 0
    assert TrainConfig(steps=10, optimizer=OptimizerConfig(warmup_ratio=1.0)).warmup_steps == 9
