"""The bucket plan keeps its promises for any set of sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.dataset.batches import BatchOrder
from trainer.dataset.buckets import (
    ASPECTS,
    BucketOptions,
    bucket_of,
    crop_lost,
    fit_frames,
    fit_size,
    plan,
)
from trainer.dataset.facts import Facts
from trainer.dataset.items import Dataset, Item
from trainer.dataset.video import pick_frames, usable_frames


def item(width: int, height: int, frames: int = 1, fps: float = 0.0, repeats: int = 1) -> Item:
    return Item(Path("x.png"), Facts(width=width, height=height, frames=frames, fps=fps), repeats=repeats)


def test_by_hand() -> None:
    assert fit_size(64, 64, 512) == (64, 64)  # never enlarged
    assert fit_size(1024, 1024, 512) == (512, 512)
    assert fit_size(2000, 1000, 512) == (720, 352)  # 724 x 362 is the exact shape
    assert fit_size(1000, 2000, 512) == (352, 720)
    assert fit_size(100, 70, 512) == (96, 64)
    assert fit_size(256, 256, 512, max_upscale=2.0) == (512, 512)
    assert fit_size(256, 256, 512, max_upscale=1.5) == (384, 384)
    assert [fit_frames(n, 33) for n in (1, 4, 5, 12, 33, 500)] == [1, 1, 5, 9, 33, 33]
    assert fit_frames(500, 21) == 21 and fit_frames(500, 24) == 21


@settings(max_examples=300)
@given(
    st.integers(16, 9000),
    st.integers(16, 9000),
    st.integers(16, 1600),
    st.sampled_from([1.0, 1.3, 2.0, 4.0]),
)
def test_sizes_keep_their_promises(width: int, height: int, resolution: int, upscale: float) -> None:
    w, h = fit_size(width, height, resolution, upscale)
    assert w % 16 == 0 and h % 16 == 0 and w >= 16 and h >= 16
    assert w * h <= max(resolution, 16) ** 2
    assert w <= width * upscale and h <= height * upscale
    aspect = max(width / height, height / width)
    if aspect <= ASPECTS[-1] and min(width, height) >= 256 and resolution >= 256:
        assert (
            crop_lost(
                item(width, height), bucket_of(item(width, height), BucketOptions(resolution=resolution))
            )
            < 0.2
        )
        assert (w >= h) == (width >= height) or abs(w - h) <= 128


@given(
    st.integers(1, 4000),
    st.just(0.0) | st.floats(0.01, 120),
    st.integers(1, 241),
    st.sampled_from([0.0, 8.0, 16.0, 24.0]),
)
def test_frames_keep_their_promises(available: int, fps: float, most: int, wanted: float) -> None:
    usable = usable_frames(available, fps, wanted)
    count = fit_frames(usable, most)
    assert count % 4 == 1 and 1 <= count <= min(usable, most)
    numbers = pick_frames(available, fps, count, wanted)
    repeated = 0 < fps < wanted * 0.95  # a slow clip shows a frame for as long as it stands
    assert len(numbers) == count and numbers == sorted(numbers) and numbers[-1] < available
    assert repeated or len(set(numbers)) == count
    assert numbers[0] >= 0 and numbers[-1] < available


def test_clips_are_thinned_out_from_their_middle() -> None:
    assert usable_frames(61, 30, 15) == 31
    assert pick_frames(61, 30, 5, 15) == [26, 28, 30, 32, 34]
    assert pick_frames(61, 30, 5, 0) == [28, 29, 30, 31, 32]
    assert pick_frames(61, 0, 5, 16) == [28, 29, 30, 31, 32]


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(16, 3000), st.integers(16, 3000), st.integers(1, 100), st.integers(1, 5)),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 6),
)
def test_the_plan_is_what_the_order_does(sizes: list[tuple[int, int, int, int]], batch_size: int) -> None:
    items = [item(w, h, frames, 16.0, repeats) for w, h, frames, repeats in sizes]
    options = BucketOptions(resolution=256)
    planned = plan(Dataset(tuple(items)), options)
    assert sum(planned.items.values()) == len(items)
    assert sum(planned.counts.values()) == sum(i.repeats for i in items)
    order = BatchOrder([bucket_of(i, options) for i in items], [i.repeats for i in items], batch_size, 0)
    assert planned.batches(batch_size) == order.batches_per_epoch
    assert all(0 <= share < 1 for share in planned.lost.values())


def test_the_plan_in_words() -> None:
    items = (item(1000, 1000), item(900, 900), item(1000, 900), item(640, 480, 40, 16.0))
    text = plan(Dataset(items), BucketOptions(resolution=512, max_frames=17)).describe()
    assert text.splitlines() == [
        "512x512: 3 items, crop lost 3.3%",
        "576x432, 17 frames: 1 items, crop lost 0.0%",
        "steps per epoch: 4 at batch size 1, 3 at batch size 2, 2 at batch size 4",
    ]


def test_extreme_shapes_lose_and_say_so() -> None:
    planned = plan(Dataset((item(3000, 100),)), BucketOptions(resolution=512))
    assert planned.worst[0] == pytest.approx(0.9, abs=0.02)
