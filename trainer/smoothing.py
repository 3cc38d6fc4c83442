"""The smoothed loss that the progress text and the plot show."""

from __future__ import annotations

import math
from collections.abc import Iterable


class SmoothedLoss:
    """Exponential mean over about `window` steps, bias-corrected so that it starts at the first loss."""

    def __init__(self, window: int = 30) -> None:
        self._decay = 1 - 1 / window
        self._sum = self._weight = 0.0

    def add(self, loss: float) -> float:
        """Take one step's loss; returns the mean so far. A skipped step's nan changes nothing."""
        if not math.isfinite(loss):
            return self._sum / self._weight if self._weight else loss
        self._sum = self._decay * self._sum + (1 - self._decay) * loss
        self._weight = self._decay * self._weight + (1 - self._decay)
        return self._sum / self._weight


def smooth(losses: Iterable[float]) -> list[float]:
    """The mean at every step."""
    mean = SmoothedLoss()
    return [mean.add(loss) for loss in losses]
