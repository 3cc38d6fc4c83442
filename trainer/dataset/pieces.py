"""Which part of a clip is trained on: its middle, its start, or several pieces, each an item of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, get_args

from .buckets import BucketOptions, bucket_of
from .items import Dataset, Item
from .video import MIDDLE, usable_frames

ClipPart = Literal["middle", "start", "several pieces", "whole in pieces"]
CLIP_PARTS: tuple[str, ...] = get_args(ClipPart)


def cut_clips(
    dataset: Dataset, options: BucketOptions, part: ClipPart = "middle", pieces: int = 4
) -> Dataset:
    """The dataset with every clip's pieces as items, of the frames that its bucket has.

    Args:
        options: training sizes, most frames and their rate.
        part: "several pieces" lie evenly spread and do not overlap; "whole in pieces" leaves nothing out.
        pieces: most of "several pieces".
    """
    items = (
        dataclasses.replace(item, place=place)
        for item in dataset.items
        for place in _places(item, options, part, pieces)
    )
    return dataclasses.replace(dataset, items=tuple(items))


def seconds_used(dataset: Dataset, options: BucketOptions) -> tuple[float, float]:
    """How much of the clips is trained on, and how much there is, in seconds at the training's frame rate."""
    used: dict[str, set[int]] = {}
    whole: dict[str, tuple[int, float]] = {}
    for item in (i for i in dataset.items if i.facts.frames > 1 and i.role != "validation"):
        usable, frames = _usable(item, options), bucket_of(item, options).frames
        start = round((usable - frames) * item.place)
        used.setdefault(str(item.path), set()).update(range(start, start + frames))
        rate = options.fps or item.facts.fps
        whole[str(item.path)] = usable, 1 / rate if rate else 0.0
    return (
        sum(len(shown) * whole[path][1] for path, shown in used.items()),
        sum(usable * step for usable, step in whole.values()),
    )


def describe_use(dataset: Dataset, options: BucketOptions) -> Iterator[str]:
    """Sentences on what of the clips is not seen, and on those that are slower than training."""
    used, whole = seconds_used(dataset, options)
    if whole:
        seen = f"clips: {used:.1f} of {whole:.1f} s are trained on"
        missed = f"{1 - used / whole:.0%}"
        yield f"{seen}; {missed} is not seen, which clip_part decides" if used < whole else seen
    slow = {
        i.path
        for i in dataset.items
        if 0 < i.facts.fps < options.fps * 0.95 and bucket_of(i, options).frames > 1
    }
    if slow:
        yield (
            f"{len(slow)} clips have fewer than {options.fps:g} frames a second; they keep their speed, and frames are "
            "repeated"
        )


def _places(item: Item, options: BucketOptions, part: ClipPart, pieces: int) -> list[float]:
    if item.facts.frames == 1 or part == "middle":
        return [MIDDLE]
    usable, frames = _usable(item, options), bucket_of(item, options).frames
    if usable == frames:
        return [MIDDLE]
    if part == "start":
        return [0.0]
    count = -(-usable // frames) if part == "whole in pieces" else min(pieces, usable // frames)
    return [n / (count - 1) for n in range(count)] if count > 1 else [MIDDLE]


def _usable(item: Item, options: BucketOptions) -> int:
    return usable_frames(item.facts.frames, item.facts.fps, options.fps)
