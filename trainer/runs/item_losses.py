"""How hard each item is, whatever noise levels it happened to be drawn at.

A loss says more of the noise level than of the item, so an item's losses are compared with what is usual at their
levels. With f(s) the mean of log(loss) over all items near level s, as it has been lately:

    r = log(loss) - f(s)        an item is exp(mean of its r - median of the items') times as hard as others

The logarithm, because losses of different levels differ by factors, and so do items. f is kept at KNOTS levels; a draw
counts for its two neighbours by nearness. Levels are drawn independently of items, so what f smooths away is the same
for every item. f and the items' means forget, as both fall while a run learns: an item's mean is over about MEMORY of
its last draws. f lags a little behind, so an item is measured against the middle one. Three numbers an item are kept.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

KNOTS = 24  # levels 0..1 at which the usual loss is kept
KNOWN = 5.0  # draws near a level before an item is compared there
MEMORY = 64  # draws

LEAST_DRAWS = 20  # of an item, before it is compared with others
LEAST_ITEMS = 15  # that were drawn so often
SPREADS = 3.7  # standard deviations of the others from their mean ...
FACTOR = 1.25  # ... and so many times it
"""Of items that differ by chance alone, as a normal distribution, 3 to 5 runs in a hundred name one, be they 15 or 200
(simulated); more do where a few items are by nature far harder than most."""


@dataclass
class ItemLosses:
    """The items of one run by their place in its dataset, validation items left out."""

    draws: list[int]  # that were compared
    excess: list[float]  # mean of r
    loss: list[float]  # mean
    usual: list[float] = field(default_factory=lambda: [0.0] * KNOTS)  # f
    near: list[float] = field(default_factory=lambda: [0.0] * KNOTS)  # draws near each knot
    scatter: float = 0.0  # mean square of r about its item's mean
    total: int = 0  # draws of all items that were compared

    @classmethod
    def of(cls, items: int) -> ItemLosses:
        """Nothing known of so many items."""
        return cls([0] * items, [0.0] * items, [0.0] * items)

    @classmethod
    def from_dict(cls, values: dict[str, Any], items: int) -> ItemLosses:
        """The inverse of to_dict; nothing known where there is no record, or one of another number of items."""
        found = cls(**values) if values else cls.of(items)
        return found if len(found.draws) == items else cls.of(items)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    def add(self, item: int, level: float, loss: float) -> None:
        """One draw of an item; one without a finite loss says nothing.

        Args:
            level: share 0-1 of the model's noise range.
            loss: without weights.
        """
        if not math.isfinite(loss) or loss <= 0:
            return
        place = min(max(level, 0.0), 1.0) * (KNOTS - 1)
        left = min(int(place), KNOTS - 2)
        weights = [(k, w) for k, w in ((left, left + 1 - place), (left + 1, place - left)) if w]
        value = math.log(loss)
        if all(self.near[knot] >= KNOWN for knot, _ in weights):
            self._compare(item, value - sum(weight * self.usual[knot] for knot, weight in weights), loss)
        for knot, weight in weights:
            self.near[knot] += weight
            self.usual[knot] += weight / min(max(self.near[knot], 1.0), MEMORY) * (value - self.usual[knot])

    def _compare(self, item: int, excess: float, loss: float) -> None:
        self.total += 1
        self.draws[item] += 1
        share = 1 / min(self.draws[item], MEMORY)
        change = excess - self.excess[item]
        self.excess[item] += share * change
        self.loss[item] += share * (loss - self.loss[item])
        of_all = 1 / min(self.total, MEMORY * KNOTS)
        self.scatter += of_all * ((1 - share) * change * change - self.scatter)

    def times(self, item: int) -> float:
        """How many times the loss of the middle item an item has at the same noise levels."""
        middle = statistics.median(self.excess[i] for i in self.ranked())
        return math.exp(self.excess[item] - middle)

    def ranked(self) -> list[int]:
        """Items that were compared, those with the highest loss first."""
        return sorted((i for i, n in enumerate(self.draws) if n), key=lambda i: -self.excess[i])

    def standing_out(self, kinds: Sequence[Hashable]) -> list[int]:
        """Items that lie apart from the others of their kind, by SPREADS and FACTOR; the highest first.

        kinds: of each item; only items of one kind are compared.
        """
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for item, kind in enumerate(kinds):
            if self.draws[item] >= LEAST_DRAWS:
                groups[kind].append(item)
        found = [i for g in groups.values() if len(g) >= LEAST_ITEMS for i in self._apart(g)]
        return sorted(found, key=lambda i: -self.excess[i])

    def _apart(self, group: list[int]) -> list[int]:
        others = len(group) - 1
        total, squares = (sum(self.excess[i] ** power for i in group) for power in (1, 2))

        def apart(item: int) -> bool:
            own = self.excess[item]
            mean = (total - own) / others
            variance = max(0.0, squares - own**2 - others * mean**2) / (others - 1)
            noise = self.scatter / min(self.draws[item], MEMORY)  # of its own mean
            limit = max(SPREADS * math.sqrt(max(variance, noise)), math.log(FACTOR))
            return abs(own - mean) > limit

        return [i for i in group if apart(i)]
