"""Sliders: the items that words make, the targets by their formula, and a strength that moves what it should."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.adapter.inject import make_adapter
from trainer.conditioning import ItemConditioning
from trainer.config import AdapterConfig, MemoryConfig, TrainConfig
from trainer.dataset.batches import ItemStore, SampleDraw, order_of
from trainer.dataset.encoded import EncodedDataset, EncodedItem, load_text
from trainer.dataset.slider import SliderTargets, read_attributes, slider_dataset
from trainer.errors import KilnError
from trainer.loop import objective
from trainer.loop.distributed import ProcessGroup
from trainer.loop.prefetch import MicroBatch, Prefetcher
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.runs.runfile import RunFile, read_dataset, write_run_file

from ..toy import CHANNELS, TEXT, ToyDenoiser, make_config

WORDS = {"face": 0, "old": 1, "young": 2, "man": 3, "woman": 4}


def encode(text: str) -> ItemConditioning:
    """A row per word: captions of different lengths cannot be one batch."""
    rows = torch.zeros(1, len(text.replace(",", "").split()), TEXT)
    for place, word in enumerate(text.replace(",", "").split()):
        rows[0, place, WORDS[word]] = 3.0
    return {"cross_attn": rows, "pooled_output": None}


def latent(count: int = 3) -> dict[str, Tensor]:
    return {"samples": torch.randn(count, CHANNELS, 1, 2, 2, generator=torch.Generator().manual_seed(2))}


def dataset_of(folder: Path, **options: Any) -> EncodedDataset:
    words = {"target": "face", "positive": "old face", "negative": "young young face", **options}
    return slider_dataset(SliderTargets(**words), latent(), encode, folder / "cache")


def test_bad_words_and_empty_latents_are_refused(tmp_path: Path) -> None:
    for name in ("target", "positive", "negative"):
        with pytest.raises(KilnError, match=f"^{name} is empty; a slider needs words"):
            SliderTargets(**{"target": "face", "positive": "old", "negative": "young", name: " \n"})
    with pytest.raises(KilnError, match="positive and negative are both 'old face'"):
        SliderTargets("face", "old face", " old  face ")
    with pytest.raises(KilnError, match="latent is an empty latent"):
        empty = {"samples": torch.zeros(1, CHANNELS, 1, 2, 2)}
        slider_dataset(SliderTargets("face", "old face", "young face"), empty, encode, tmp_path)
    with pytest.raises(KilnError, match="A latent of shape"):
        flat = {"samples": torch.ones(4, 4)}
        slider_dataset(SliderTargets("face", "old face", "young face"), flat, encode, tmp_path)


def test_attributes_stand_before_all_three(tmp_path: Path) -> None:
    targets = SliderTargets("face", "old  face", "young face", read_attributes("man\n\n woman \nman"))
    assert targets.prompts == [
        ("man, face", "man, old face", "man, young face"),
        ("woman, face", "woman, old face", "woman, young face"),
    ]
    encoded = slider_dataset(targets, latent(), encode, tmp_path / "cache")
    assert len(encoded.items) == 3 and encoded.slider == "face: young face .. old  face, keeping man | woman"
    store, seen = ItemStore(encoded.items, seed=1), set()
    for epoch in range(40):
        (item,) = store.load([SampleDraw(0, epoch, 0)]).items
        expected = [encode(p) for p in targets.prompts[int(item.conditioning["cross_attn"][0, 0, 4] > 0)]]
        found = [item.conditioning, *item.slider_ends]
        pairs = zip(found, expected, strict=True)
        assert all(torch.equal(f["cross_attn"], e["cross_attn"]) for f, e in pairs)
        seen.add(store.choose(SampleDraw(0, epoch, 0))[1])
    assert len(seen) == 2


def test_what_it_is_made_of_is_in_its_fingerprint_and_its_run_file(tmp_path: Path) -> None:
    first = dataset_of(tmp_path)
    others = [dataset_of(tmp_path, **o) for o in ({"positive": "young face"}, {"guidance": 2.0})]
    assert len({first.fingerprint, *(o.fingerprint for o in others)}) == 3
    assert dataset_of(tmp_path).encoded_now == 0, "from the cache"
    write_run_file(tmp_path, RunFile(model={"loader": ""}, config=TrainConfig()), first)
    again = read_dataset(tmp_path / "dataset.json")
    assert again.fingerprint == first.fingerprint and again.slider == first.slider
    assert load_text(again.items[0].text_path).keys() == encode("face").keys()
    values = first.items[0].to_dict()
    with pytest.raises(TypeError, match="slider_ends"):
        EncodedItem.from_dict({**values, "slider_ends": values["slider_ends"][:1]})


def run(encoded: EncodedDataset, config: TrainConfig, folder: Path, **options: Any) -> TrainResult:
    return train(ToyDenoiser(), encoded, config, run_folder=folder, **options)


def micro_batches(encoded: EncodedDataset, config: TrainConfig) -> list[MicroBatch]:
    items = list(encoded.items)
    order = order_of(items, config.batch_size, config.seed)
    return Prefetcher(ToyDenoiser(), config, order, ItemStore(items, config.seed), ProcessGroup()).get(0, 1)


@pytest.fixture
def tilted() -> dict[str, Tensor]:
    """An adapter's state dict whose update is not zero."""
    draws, denoiser = torch.Generator().manual_seed(4), ToyDenoiser()
    with denoiser.session():
        state = make_adapter(denoiser.module, make_config().adapter, 1).state_dict()
    return {name: value + 0.2 * torch.randn(value.shape, generator=draws) for name, value in state.items()}


def test_the_loss_is_the_formula(tmp_path: Path, tilted: dict[str, Tensor]) -> None:
    """Mean over s = 1 and -1 of |f_s(x, c) - f(x, c) - s eta (f(x, c+) - f(x, c-))|^2, with an untouched network, and
    one whose B matrices are negative for s = -1."""
    encoded = dataset_of(tmp_path, guidance=2.0)
    config = make_config(steps=1, batch_size=3)
    (micro_batch,) = micro_batches(encoded, config)
    found = run(encoded, config, tmp_path / "run", start_from=tilted)
    noised, untouched = micro_batch.noised, ToyDenoiser()
    errors = []
    with torch.no_grad(), untouched.session():

        def frozen(text: str) -> Tensor:
            rows = encode(text)["cross_attn"].expand(3, -1, -1)
            return untouched.forward(noised.noisy, noised.timestep, {"cross_attn": rows})

        way = 2.0 * (frozen("old face") - frozen("young young face"))
        for sign in (1, -1):
            adapted = ToyDenoiser()
            with adapted.session():
                state = {n: sign * t if "lora_B" in n else t for n, t in tilted.items()}
                make_adapter(adapted.module, config.adapter, 1).load_state_dict(state)
                answer = adapted.forward(noised.noisy, noised.timestep, micro_batch.conditioning)
            errors.append(objective.loss_per_item(answer, frozen("face") + sign * way).mean())
    assert found.losses[0] == pytest.approx(float(sum(errors)) / 2, rel=1e-5)


def test_strength_moves_it_there_and_back(tmp_path: Path) -> None:
    """A trained slider's answer goes along the way between the ends, further with each strength."""
    encoded, config = dataset_of(tmp_path, guidance=1.0), make_config(steps=80, batch_size=3)
    found = run(encoded, config, tmp_path / "run")
    assert found.losses[-1] < 0.5 * found.losses[0]
    (micro_batch,) = micro_batches(encoded, config)
    noised = micro_batch.noised

    def answer(strength: float, text: str = "face") -> Tensor:
        denoiser = ToyDenoiser()
        rows = encode(text)["cross_attn"].expand(3, -1, -1)
        with torch.no_grad(), denoiser.session():
            if strength:
                state = {n: strength * t if "lora_B" in n else t for n, t in found.adapter.items()}
                make_adapter(denoiser.module, config.adapter, 1).load_state_dict(state)
            return denoiser.forward(noised.noisy, noised.timestep, {"cross_attn": rows})

    way = answer(0, "old face") - answer(0, "young young face")
    moved = [float(((answer(s) - answer(0)) * way).sum() / way.square().sum()) for s in (-1, -0.5, 0, 0.5, 1)]
    assert moved == sorted(moved) and moved[-1] > 0.5 and moved[0] < -0.5, moved


def test_resumed_recomputed_and_streamed_it_is_the_same_run(tmp_path: Path) -> None:
    encoded = dataset_of(tmp_path, preserve=("man", "woman"))
    config = make_config(steps=6, batch_size=2, dropout=0.2)
    config = dataclasses.replace(config, checkpoint_every=3)
    whole = run(encoded, config, tmp_path / "whole")
    resumed = run(encoded, config, tmp_path / "again", resume_from=tmp_path / "whole" / "step-00000003")
    levels = [
        run(encoded, config, tmp_path / level, memory=MemoryConfig(level=level))
        for level in ("checkpoint activations", "stream blocks")
    ]
    for other in (resumed, *levels):
        assert other.losses == whole.losses
        assert all(torch.equal(other.adapter[name], value) for name, value in whole.adapter.items())


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (AdapterConfig(kind="loha"), "and kind is loha; set it back on Adapter Settings"),
        (AdapterConfig(init="pissa"), "and init is pissa; set it back on Adapter Settings"),
    ],
)
def test_kinds_without_another_sign_are_refused(tmp_path: Path, adapter: AdapterConfig, message: str) -> None:
    with pytest.raises(KilnError, match=message):
        run(dataset_of(tmp_path), dataclasses.replace(make_config(), adapter=adapter), tmp_path / "run")


def test_an_update_in_backward_is_refused(tmp_path: Path) -> None:
    config = make_config(update_in_backward=True, max_grad_norm=0.0)
    with pytest.raises(KilnError, match="a slider has one for each of its ends"):
        run(dataset_of(tmp_path), config, tmp_path / "run")
