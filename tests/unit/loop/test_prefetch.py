"""Micro-batches made ahead are those that would have been made on the spot; what cannot be one batch runs in turn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import ObjectiveConfig
from trainer.dataset.batches import BatchOrder, ItemStore, LoadedItem
from trainer.dataset.encoded import EncodedDataset, PixelSize, write_conditioning
from trainer.dataset.from_graph import encoded_from_latents
from trainer.loop import objective
from trainer.loop.distributed import ProcessGroup
from trainer.loop.prefetch import MicroBatch, Prefetcher, complete
from trainer.loop.train import train

from ..toy import TEXT, ToyDenoiser, make_config, make_encoded


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


def captions_of_lengths(folder: Path, *lengths: int) -> EncodedDataset:
    """Items of one size whose captions have these rows."""
    encoded = make_encoded(folder, count=len(lengths))
    draws = torch.Generator().manual_seed(5)
    for item, length in zip(encoded.items, lengths, strict=True):
        write_conditioning(item.text_path, {"cross_attn": torch.randn(1, length, TEXT, generator=draws)})
    return encoded


def feed_of(encoded: EncodedDataset, batch_size: int) -> Prefetcher:
    items, config = list(encoded.items), make_config(batch_size=batch_size)
    order = BatchOrder([i.shape for i in items], [1] * len(items), batch_size, config.seed)
    return Prefetcher(ToyDenoiser(), config, order, ItemStore(items, config.seed), ProcessGroup())


def test_captions_of_different_length_run_in_turn(tmp_path: Path) -> None:
    """Items that can be one batch stay one; each item has the noise and the weight that it has in any batch."""
    prefetcher = feed_of(captions_of_lengths(tmp_path, 3, 5, 3, 5, 3), batch_size=5)
    parts = prefetcher.get(0, 1)
    assert sorted(len(p.factor) for p in parts) == [2, 3] and len({p.place for p in parts}) == 2
    assert parts[0].place == 0, "the first runs with the draws of a batch that is not divided"
    assert float(sum(p.factor.sum() for p in parts)) == pytest.approx(1.0)
    for part in parts:
        assert len(part.conditioning["cross_attn"]) == len(part.factor) == len(part.noised.noisy)
    same_lengths = feed_of(captions_of_lengths(tmp_path / "same", 4, 4, 4, 4, 4), batch_size=5).get(0, 1)
    (whole,) = same_lengths
    noisy = torch.cat([p.noised.noisy for p in parts]).sum((1, 2, 3, 4))
    assert sorted(noisy.tolist()) == pytest.approx(sorted(whole.noised.noisy.sum((1, 2, 3, 4)).tolist()))


def test_the_step_is_the_mean_over_its_items(tmp_path: Path) -> None:
    """The loss of a divided batch is that of its items one by one: no caption is padded."""
    prefetcher, denoiser = feed_of(captions_of_lengths(tmp_path, 2, 7, 4, 7), 4), ToyDenoiser()

    def loss(part: MicroBatch, places: list[int]) -> torch.Tensor:
        conditioning = {name: value[places] for name, value in part.conditioning.items()}
        noised = part.noised
        answer = denoiser.forward(noised.noisy[places], noised.timestep[places], conditioning)
        return (objective.loss_per_item(answer, noised.target[places]) * part.factor[places]).sum()

    with denoiser.session(), torch.no_grad():
        parts = prefetcher.get(0, 1)
        together = sum(loss(p, list(range(len(p.factor)))) for p in parts)
        alone = [loss(p, [i]) * 4 for p in parts for i in range(len(p.factor))]
    assert float(together) == pytest.approx(float(sum(alone)) / 4, rel=1e-5) and len(alone) == 4


def test_a_run_with_captions_of_any_length_resumes_exactly(tmp_path: Path) -> None:
    encoded = captions_of_lengths(tmp_path, 2, 7, 4, 7, 3, 3)
    config = dataclasses.replace(make_config(steps=6, batch_size=3, dropout=0.2), checkpoint_every=3)
    whole = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "whole")
    resumed = train(
        ToyDenoiser(),
        encoded,
        config,
        run_folder=tmp_path / "resumed",
        resume_from=tmp_path / "whole" / "step-00000003",
    )
    assert resumed.losses == whole.losses
    assert all(torch.equal(resumed.adapter[name], value) for name, value in whole.adapter.items())


SIZE = PixelSize(640, 480, 8, 0, 512, 384)


@pytest.mark.parametrize(
    ("entry", "options", "expected"),
    [
        ({}, {}, {"guidance": 1.0, "frame_rate": 12.0}),
        ({"guidance": 3.5, "frame_rate": 24}, {}, {"guidance": 3.5, "frame_rate": 24}),
        ({"guidance": None}, {"guidance": 2.0}, {"guidance": None, "frame_rate": 12.0}),
        ({}, {"guidance": 2.0}, {"guidance": 2.0, "frame_rate": 12.0}),
    ],
)
def test_what_the_model_is_told_besides(entry: Any, options: Any, expected: Any) -> None:
    """Only what the conditioning does not say itself."""
    denoiser = ToyDenoiser()
    denoiser.guidance_distilled = True
    assert complete(LoadedItem(entry, SIZE, 12.0), denoiser, ObjectiveConfig(**options)) == expected
    assert complete(LoadedItem({}, SIZE, 0.0), ToyDenoiser(), ObjectiveConfig()) == {}


def test_sdxl_is_told_the_sizes_of_each_item() -> None:
    denoiser = ToyDenoiser()
    denoiser.family = ("SDXL",)

    def told(choice: str, entry: dict[str, Any], size: PixelSize | None = SIZE) -> dict[str, Any]:
        return complete(LoadedItem(entry, size, 0.0), denoiser, ObjectiveConfig(size_conditioning=choice))

    assert told("item", {}) == {
        **{"width": 640, "height": 480, "crop_w": 8, "crop_h": 0},
        **{"target_width": 512, "target_height": 384},
    }
    assert told("item", {}, None) == told("latent", {}) == {}, "the host then takes the size of the latents"
    assert told("768", {}) == {"width": 768, "height": 768}
    own = {"width": 1024, "height": 1024, "crop_w": 5}
    assert told("item", own) == told("768", own) == own


def test_what_is_given_is_not_noised(tmp_path: Path) -> None:
    """Where a model takes given parts: they stay clean, it is told, and they do not count in the loss. Others get the
    mask in the loss alone."""
    latents = torch.randn(2, 4, 3, 2, 2)
    mask = torch.ones(1, 1, 3, 2, 2)
    mask[:, :, 0] = 0
    entries = [[torch.randn(1, 3, TEXT), {}] for _ in range(2)]
    encoded = encoded_from_latents(
        [{"samples": latents[:1], "noise_mask": mask}, {"samples": latents[1:]}], [entries], tmp_path
    )

    class Giving(ToyDenoiser):
        takes_given_parts = True

    items, config = list(encoded.items), make_config(batch_size=2)
    for kind in (Giving, ToyDenoiser):
        order = BatchOrder([i.shape for i in items], [1, 1], 2, config.seed)
        store = ItemStore(items, config.seed)
        parts = Prefetcher(kind(), config, order, store, ProcessGroup()).get(0, 1)
        told = [p for p in parts if "denoise_mask" in p.conditioning]
        clean = sum(
            bool((p.noised.noisy[i, :, 0] == latents[0, :, 0]).all())
            for p in parts
            for i in range(len(p.factor))
        )
        assert len(told) == clean == (1 if kind is Giving else 0)
        assert any(p.mask is not None and not p.mask[:, :, 0].all() for p in parts)
        for part in told:
            assert part.conditioning["denoise_mask"].shape == (1, 4, 3, 2, 2)
