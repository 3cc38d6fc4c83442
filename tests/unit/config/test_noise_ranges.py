"""The noise levels of two experts: where they meet, and what is said where they do not."""

from __future__ import annotations

import pytest

from trainer.config import RANGES, ObjectiveConfig
from trainer.config.noise_ranges import NoiseRange, boundary_of, misfit
from trainer.errors import KilnError


@pytest.mark.parametrize("task", ["text to video", "image to video"])
def test_the_presets_of_a_task_meet(task: str) -> None:
    high, low = (NoiseRange(*RANGES[f"{part} noise, {task}"].values()) for part in ("high", "low"))
    assert misfit(high, low) == misfit(low, high) == ""
    assert (low.low, high.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        ((0.0, 0.9), (0.875, 1.0), "overlap: this run trains 0 to 0.9 and the other 0.875 to 1;"),
        ((0.9, 1.0), (0.0, 0.875), "leave a gap: this run trains 0.9 to 1 and the other 0 to 0.875;"),
        ((0.0, 1.0), (0.875, 1.0), "overlap"),
    ],
)
def test_what_does_not_meet_is_said(own: tuple[float, float], other: tuple[float, float], said: str) -> None:
    assert said in misfit(NoiseRange(*own), NoiseRange(*other))


def test_two_whole_models_are_no_experts() -> None:
    assert misfit(NoiseRange(0.0, 1.0), NoiseRange(0.0, 1.0)) == ""


def test_where_one_gives_over_to_the_other() -> None:
    assert boundary_of(ObjectiveConfig(min_timestep=0.875)) == (0.875, True)
    assert boundary_of(ObjectiveConfig(max_timestep=0.9)) == (0.9, False)
    for nowhere in (ObjectiveConfig(), ObjectiveConfig(min_timestep=0.2, max_timestep=0.8)):
        with pytest.raises(KilnError, match="no expert's; choose a preset"):
            boundary_of(nowhere)
