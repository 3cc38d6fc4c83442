"""Which items are hard, told apart from the noise levels that they happened to get."""

from __future__ import annotations

import json
import math
import random

import pytest

from trainer.runs.item_losses import LEAST_DRAWS, ItemLosses


def drawn(
    hard: dict[int, float], items: int = 20, draws: int = 60, seed: int = 0, noise: float = 0.3
) -> ItemLosses:
    """Losses that depend on the level by two orders of magnitude, fall while the run goes on, and scatter."""
    numbers, found = random.Random(seed), ItemLosses.of(items)
    for turn in range(draws):
        for item in numbers.sample(range(items), items):
            level = numbers.random()
            usual = math.exp(4.6 * (level - 0.5)) * (0.5 + 0.5 * math.exp(-turn / 20))
            found.add(item, level, usual * hard.get(item, 1.0) * math.exp(numbers.gauss(0, noise)))
    return found


def test_an_item_is_compared_with_others_at_its_levels() -> None:
    """Two items as hard as the others, one of which only gets levels where every loss is high."""
    numbers, found = random.Random(1), ItemLosses.of(12)
    for _ in range(80):
        for item in range(12):
            level = 0.8 + 0.2 * numbers.random() if item == 3 else numbers.random()
            found.add(item, level, math.exp(4.6 * level + numbers.gauss(0, 0.1)))
    assert found.loss[3] > 2.5 * found.loss[0], "its mean loss says that it is hard"
    assert found.times(3) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("times", "side"), [(2.0, 1), (0.5, -1)])
def test_one_item_stands_out(times: float, side: int) -> None:
    found = drawn({7: times})
    assert found.standing_out(["subject"] * 20) == [7]
    assert found.ranked()[0 if side > 0 else -1] == 7
    assert found.times(7) == pytest.approx(times, rel=0.15)


def test_items_of_another_kind_are_not_compared() -> None:
    hard = dict.fromkeys(range(15), 3.0)
    kinds = ["regularisation"] * 15 + ["subject"] * 15
    assert drawn(hard, 30).standing_out(kinds) == []
    assert drawn({**hard, 20: 2.0}, 30).standing_out(kinds) == [20]


def test_many_alike_are_no_mistakes() -> None:
    assert drawn({1: 3.0, 2: 3.0, 3: 3.0}).standing_out([0] * 20) == []
    assert drawn({1: 3.0}).standing_out([0] * 20) == [1]


def test_little_is_known_of_few_draws_or_items() -> None:
    assert drawn({7: 3.0}, draws=LEAST_DRAWS - 1).standing_out([0] * 20) == []
    assert drawn({3: 3.0}, items=14).standing_out([0] * 14) == []


def test_what_is_not_finite_says_nothing() -> None:
    found = ItemLosses.of(2)
    for loss in (math.nan, math.inf, 0.0):
        found.add(0, 0.5, loss)
    assert found == ItemLosses.of(2)


def test_it_goes_on_where_it_was() -> None:
    """Through JSON, as a checkpoint has it; a record of another dataset, or none, is no record."""
    found = drawn({7: 2.0})
    again = ItemLosses.from_dict(json.loads(json.dumps(found.to_dict())), 20)
    assert again == found
    again.add(3, 0.4, 0.7)
    found.add(3, 0.4, 0.7)
    assert again == found
    assert ItemLosses.from_dict(found.to_dict(), 19) == ItemLosses.of(19)
    assert ItemLosses.from_dict({}, 4) == ItemLosses.of(4)


def test_a_false_alarm_is_rare() -> None:
    """In 40 runs of 20 items that do not differ; benchmarks/item_losses.py measures it with a model."""
    assert sum(bool(drawn({}, draws=25, seed=seed).standing_out([0] * 20)) for seed in range(40)) == 0
