"""Which size every item is trained at: few sizes, so that batches fill; every batch comes from one bucket.

A bucket is (frames, height, width): sides in multiples of 16, 4n+1 frames, area at most resolution x resolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .items import Dataset, Item
from .video import usable_frames

MULTIPLE = 16  # pixels: 8 of the VAE times 2 of the model's patches
ASPECTS = (1.0, 1.25, 4 / 3, 1.5, 16 / 9, 2.0, 2.4, 3.0)  # long side over short side
FRAME_COUNTS = (1, 5, 9, 13, 17, 25, 33, 49, 65, 81, 97, 129, 161, 193, 241)


class Bucket(NamedTuple):
    """One size."""

    frames: int
    height: int  # pixels
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" + (f", {self.frames} frames" if self.frames > 1 else "")


@dataclass(frozen=True, kw_only=True)
class BucketOptions:
    """The limits of the plan."""

    resolution: int = 512
    """The area is at most resolution x resolution pixels."""
    max_frames: int = 33
    """Most frames of a clip, 4n+1."""
    fps: float = 16.0
    """Frame rate that clips are trained at; 0 takes every frame."""
    max_upscale: float = 1.0
    """How far a small image may be enlarged."""


@lru_cache(maxsize=512)
def sizes_at(resolution: int) -> list[tuple[int, int]]:
    """The (width, height) of every aspect ratio at an area of at most resolution x resolution."""
    found: dict[tuple[int, int], None] = {}  # keeps the order
    for aspect in ASPECTS:
        long, short = _snap(resolution * aspect**0.5), _snap(resolution / aspect**0.5)
        if long * short <= resolution**2:
            found[long, short] = found[short, long] = None
    return list(found)


@lru_cache(maxsize=10_000)
def fit_size(width: int, height: int, resolution: int, max_upscale: float = 1.0) -> tuple[int, int]:
    """The training size of an image of at least 16 x 16: the nearest shape at the largest area that it can fill.

    Args:
        width, height: pixels.
        resolution: the area is at most resolution x resolution.
        max_upscale: how far the image may be enlarged.
    """
    for level in range(_snap(resolution), 0, -MULTIPLE):
        size = min(sizes_at(level), key=lambda s: _lost(width, height, s))
        if size[0] <= width * max_upscale and size[1] <= height * max_upscale:
            return size
    return MULTIPLE, MULTIPLE


def fit_frames(available: int, max_frames: int) -> int:
    """The largest frame count of the list that a clip can fill; max_frames itself counts as in the list."""
    largest = (max_frames - 1) // 4 * 4 + 1
    counts = [c for c in (*FRAME_COUNTS, largest) if c <= min(available, largest)]
    return max(counts, default=1)


def bucket_of(item: Item, options: BucketOptions) -> Bucket:
    """An item's size. At a resolution of its own it is never enlarged: it is trained at the first one, too."""
    facts = item.facts
    resolution, upscale = (
        (item.resolution, 1.0) if item.resolution else (options.resolution, options.max_upscale)
    )
    width, height = fit_size(facts.width, facts.height, resolution, upscale)
    frames = fit_frames(usable_frames(facts.frames, facts.fps, options.fps), options.max_frames)
    return Bucket(frames, height, width)


def crop_lost(item: Item, bucket: Bucket) -> float:
    """Share 0-1 of an item's pixels that falls outside its bucket's shape."""
    return _lost(item.facts.width, item.facts.height, (bucket.width, bucket.height))


@dataclass(frozen=True)
class Plan:
    """Every trained item's bucket."""

    counts: dict[Bucket, int]  # samples in an epoch, repeats counted
    items: dict[Bucket, int]
    lost: dict[Bucket, float]  # mean share cropped away
    worst: tuple[float, str]  # largest share cropped away, and of which file

    def batches(self, batch_size: int) -> int:
        """Batches per epoch: the last of each bucket may be smaller."""
        return sum(-(-count // batch_size) for count in self.counts.values())

    def rows(self) -> list[tuple[str, int, int, str]]:
        """Bucket, items, samples per epoch, crop lost: largest bucket first."""
        order = sorted(self.items, key=lambda b: (-self.items[b], b))
        return [(str(b), self.items[b], self.counts[b], f"{self.lost[b]:.1%}") for b in order]

    def describe(self, most: int = 12) -> str:
        """For the node's text."""
        rows = self.rows()
        lines = [f"{name}: {items} items, crop lost {lost}" for name, items, _, lost in rows[:most]]
        if len(rows) > most:
            lines.append(f"and {len(rows) - most} more buckets")
        return "\n".join([*lines, self.steps()])

    def steps(self) -> str:
        """How long an epoch is."""
        one, two, four = (self.batches(size) for size in (1, 2, 4))
        return f"steps per epoch: {one} at batch size 1, {two} at batch size 2, {four} at batch size 4"


def plan(dataset: Dataset, options: BucketOptions) -> Plan:
    """The plan of what is trained on; items held out for validation are not in it."""
    trained = [i for i in dataset.items if i.role != "validation"]
    return _plan(trained, [bucket_of(i, options) for i in trained])


def _plan(items: Sequence[Item], buckets: Sequence[Bucket]) -> Plan:
    counts: Counter[Bucket] = Counter()
    number: Counter[Bucket] = Counter()
    lost: Counter[Bucket] = Counter()
    worst = (0.0, "")
    for item, bucket in zip(items, buckets, strict=True):
        share = crop_lost(item, bucket)
        counts[bucket] += item.repeats
        number[bucket] += 1
        lost[bucket] += share  # type: ignore[assignment]
        worst = max(worst, (share, item.path.name))
    return Plan(dict(counts), dict(number), {b: lost[b] / n for b, n in number.items()}, worst)


def _snap(side: float) -> int:
    return max(MULTIPLE, int((side + 1e-6) // MULTIPLE) * MULTIPLE)


def _lost(width: int, height: int, size: tuple[int, int]) -> float:
    scale = max(size[0] / width, size[1] / height)
    return max(0.0, 1 - size[0] * size[1] / (width * height * scale**2))
