"""A run's loss curve: smoothed, and thinned out for drawing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..events import StepEvent

Point = tuple[int, float, float, float]  # step, loss, smoothed loss, learning rate


@dataclass
class Curve:
    """All points of a run, one per step that counted, in order. A skipped step has no loss: JSON knows no nan, and
    there is nothing to draw."""

    points: list[Point] = field(default_factory=list)

    def add(self, event: StepEvent) -> None:
        self.add_point(event.step, event.loss, event.smoothed_loss, event.learning_rate)

    def add_point(self, step: int, loss: float, smoothed: float, rate: float) -> None:
        if math.isfinite(loss):
            self.points.append((step, loss, smoothed, rate))

    def thinned(self, columns: int = 2000) -> list[Point]:
        """At most 2 * columns points that keep every peak: the lowest and highest loss of each column."""
        count = len(self.points)
        if count <= 2 * columns:
            return list(self.points)
        losses = np.array([p[1] for p in self.points])
        edges = np.linspace(0, count, columns + 1).astype(int)
        chosen = set()
        for start, end in itertools.pairwise(edges.tolist()):
            chosen |= {start + int(losses[start:end].argmin()), start + int(losses[start:end].argmax())}
        return [self.points[i] for i in sorted(chosen | {0, count - 1})]


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
