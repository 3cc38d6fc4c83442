"""Settings: ranges are enforced with a sentence, and the guide's figures are where it puts them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainer.config import (
    PRESETS,
    THEMES,
    AdapterConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    field_info,
)
from trainer.errors import KilnError
from trainer.loop.optim import make_schedule


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
        (
            lambda: TrainConfig.from_dict({"steps": 2.5}),
            r"steps is 2.5; it must be of the kind of \d+ \(int\)",
        ),
        (lambda: TrainConfig.from_dict({"steps": True}), "steps is True; it must be of the kind of"),
        (lambda: TrainConfig.from_dict({"adapter": {"rank": 4.5}}), "rank is 4.5; it must be of the kind of"),
        (
            lambda: TrainConfig.from_dict({"adapter": {"alpha": False}}),
            "alpha is False; it must be of the kind",
        ),
        (lambda: TrainConfig.from_dict({"memory": {"compile_blocks": 1}}), "compile_blocks is 1; it must be"),
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
    for config in (TrainConfig, *THEMES.values()):
        for name, field in field_info(config).items():
            assert len(field.metadata["doc"]) > 20, name
            if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
                assert field.metadata["minimum"] <= field.default <= field.metadata["maximum"], name


def test_presets_are_the_guides_recipes() -> None:
    assert PRESETS["quick trial"]["rank"] == 32 and PRESETS["quick trial"]["steps"] == 500
    assert PRESETS["standard"]["rank"] == 64 and PRESETS["standard"]["steps"] == 1500
    assert PRESETS["character"]["rank"] == 96 and PRESETS["character"]["steps"] == 2000
    widgets = {"steps", "learning_rate", "rank", "alpha", "batch_size"}
    assert all(set(preset) == widgets for preset in PRESETS.values())


def rates(config: TrainConfig) -> list[float]:
    factor = make_schedule(config)
    return [config.optimizer.learning_rate * factor(step) for step in range(config.steps)]


def test_warmup_and_cosine_by_formula() -> None:
    config = TrainConfig(steps=100, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.1))
    expected = [1e-3 * s / 10 for s in range(10)]
    expected += [1e-3 * 0.5 * (1 + math.cos(math.pi * (s - 10) / 90)) for s in range(10, 100)]
    assert rates(config) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant", "warmup_steps": 2}, [0, 0.5, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear", "warmup_ratio": 0.0}, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        # A progressive start: from a tenth of the rate up over half of the run
        (
            {"schedule": "constant", "warmup_ratio": 0.5, "warmup_start": 0.1},
            [0.1, 0.325, 0.55, 0.775] + [1.0] * 4,
        ),
        (
            {"schedule": "cosine_with_restarts", "schedule_cycles": 2, "warmup_ratio": 0.0},
            [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5] * 2,
        ),
        (
            {"schedule": "polynomial", "schedule_power": 2.0, "warmup_ratio": 0.0},
            [(1 - s / 8) ** 2 for s in range(8)],
        ),
    ],
)
def test_schedules_by_formula(options: dict[str, Any], expected: list[float]) -> None:
    config = TrainConfig(steps=8, optimizer=OptimizerConfig(learning_rate=1.0, **options))
    assert rates(config) == pytest.approx(expected, abs=1e-6)


def test_warmup_never_eats_the_run() -> None:
    assert TrainConfig(steps=1, optimizer=OptimizerConfig(warmup_ratio=1.0)).warmup_steps == 0
    assert TrainConfig(steps=10, optimizer=OptimizerConfig(warmup_ratio=1.0)).warmup_steps == 9
