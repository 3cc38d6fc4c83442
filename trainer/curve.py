"""A run's curve while it grows, and thinned out for looking at it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from .events import StepEvent

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
        kept = set()
        for start, end in itertools.pairwise(edges.tolist()):
            kept |= {start + int(losses[start:end].argmin()), start + int(losses[start:end].argmax())}
        return [self.points[i] for i in sorted(kept | {0, count - 1})]
