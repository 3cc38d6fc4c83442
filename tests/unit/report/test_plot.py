"""The loss plot of any curve."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.report.curve import smooth
from trainer.report.plot import loss_plot, nice_ticks


@pytest.mark.parametrize(
    "losses", [[0.5], [0.5, 0.5, 0.5], list(np.geomspace(1, 1e-3, 500)), [1e-12, 5.0, 1e5]]
)
def test_plot_of_any_curve(losses: list[float]) -> None:
    picture = loss_plot(losses, smooth(losses), "title")
    assert picture.shape == (540, 960, 3) and 0 <= picture.min() < 0.5 and picture.max() == 1.0


def test_plot_with_validation_and_notes() -> None:
    losses = [1.0, float("nan"), 0.5]
    plain = loss_plot(losses, smooth(losses), "title")
    told = loss_plot(
        losses, smooth(losses), "title", validation=[(0, 2.0), (2, 1.5)], notes=["A sentence. " * 30]
    )
    assert told.shape[0] > plain.shape[0] and not np.array_equal(told[:540], plain)


def test_ticks_enclose_the_range() -> None:
    assert nice_ticks(0.13, 0.87) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for low, high in ((0.0, 0.0), (5.0, 5.0), (-1.0, 1e-9), (1e-8, 1e-7)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 12
