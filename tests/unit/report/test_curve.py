"""A run's curve, thinned out for looking at it."""

from __future__ import annotations

import math

import pytest

from trainer.events import StepEvent
from trainer.report.curve import Curve, smooth


def make_curve(count: int) -> Curve:
    curve = Curve()
    for step in range(1, count + 1):
        loss = math.sin(step)
        curve.add(
            StepEvent(
                step=step,
                total=count,
                loss=loss,
                smoothed_loss=loss,
                learning_rate=1e-4,
                grad_norm=1.0,
                seconds=0.1,
                epoch=1.0,
            )
        )
    return curve


def test_short_curves_are_whole() -> None:
    assert [p[0] for p in make_curve(50).thinned()] == list(range(1, 51))


def test_long_curves_keep_peaks_and_ends() -> None:
    curve = make_curve(20_000)
    curve.points[7_777] = (7_778, 50.0, 0.0, 0.0)
    points = curve.thinned(columns=500)
    steps = [p[0] for p in points]
    assert len(points) <= 1002 and steps == sorted(steps)
    assert steps[0] == 1 and steps[-1] == 20_000 and 7_778 in steps


def test_smoothing() -> None:
    assert smooth([3.0]) == pytest.approx([3.0])
    assert smooth([2.0] * 100)[-1] == pytest.approx(2.0)
    assert smooth([0.0] * 50 + [1.0] * 50)[-1] == pytest.approx(0.85, abs=0.03)
