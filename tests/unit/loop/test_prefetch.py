"""Questions made ahead are those that would have been made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.dataset.batches import BatchOrder, ItemStore
from trainer.loop.distributed import ProcessGroup
from trainer.loop.prefetch import MicroBatch, Prefetcher

from ..toy import ToyDenoiser, make_config, make_encoded


def make_feed(folder: Path) -> Prefetcher:
    encoded, config = make_encoded(folder, count=6), make_config(batch_size=4, gradient_accumulation=2)
    items = list(encoded.items)
    order = BatchOrder([i.shape for i in items], [i.repeats for i in items], 4, config.seed)
    return Prefetcher(ToyDenoiser(), config, order, ItemStore(items, config.seed), ProcessGroup())


def same(a: list[MicroBatch], b: list[MicroBatch]) -> bool:
    return len(a) == len(b) and all(
        x.place == y.place
        and torch.equal(x.noised.noisy, y.noised.noisy)
        and torch.equal(x.noised.timestep, y.noised.timestep)
        and torch.equal(x.factor, y.factor)
        for x, y in zip(a, b, strict=True)
    )


def test_prepared_equals_made_on_the_spot(tmp_path: Path) -> None:
    prefetcher = make_feed(tmp_path)
    expected = prefetcher.get(3, 1)
    prefetcher.prefetch(3, 1)
    assert same(prefetcher.get(3, 1), expected)
    prefetcher.prefetch(4, 1)  # a roll-back: another step is asked for than was prefetched
    assert same(prefetcher.get(3, 1), expected)


def test_smaller_parts_hold_the_same_items(tmp_path: Path) -> None:
    prefetcher = make_feed(tmp_path)
    prefetcher.prefetch(0, 1)
    parts, whole = prefetcher.get(0, 2), prefetcher.get(0, 1)
    assert len(parts) > len(whole), "prepared for whole batches, taken in parts"
    assert sum(len(p.factor) for p in parts) == sum(len(p.factor) for p in whole)
    total = sum(float(p.factor.sum()) for p in whole)
    assert abs(sum(float(p.factor.sum()) for p in parts) - total) < 1e-6
    assert len({p.place for p in parts}) == len(parts), "no two micro-batches draw the same dropout"
