"""Differential output preservation: the second term is what its formula says, costs nothing when off, and works."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.adapter.inject import make_adapter
from trainer.config import AdapterConfig, MemoryConfig, TrainConfig
from trainer.dataset.batches import ItemStore, order_of
from trainer.dataset.encoded import EncodedDataset, write_conditioning
from trainer.errors import KilnError
from trainer.loop import objective
from trainer.loop.distributed import ProcessGroup
from trainer.loop.prefetch import MicroBatch, Prefetcher
from trainer.loop.progress import TrainResult
from trainer.loop.train import train

from ..toy import TEXT, ToyDenoiser, make_config, make_encoded


def with_classes(encoded: EncodedDataset, *lengths: int) -> EncodedDataset:
    """The same items; the class caption of item i has so many rows, 0 for an item without."""
    draws, items = torch.Generator().manual_seed(9), []
    for number, (item, length) in enumerate(zip(encoded.items, lengths, strict=True)):
        path = item.text_path.with_name(f"class{number}.safetensors")
        write_conditioning(path, {"cross_attn": torch.randn(1, max(1, length), TEXT, generator=draws)})
        items.append(dataclasses.replace(item, class_texts=(path,) if length else ()))
    return EncodedDataset(tuple(items))


def weighed(config: TrainConfig, weight: float) -> TrainConfig:
    return dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, preservation_weight=weight)
    )


def micro_batches(encoded: EncodedDataset, config: TrainConfig) -> list[MicroBatch]:
    items = list(encoded.items)
    order = order_of(items, config.batch_size, config.seed)
    feed = Prefetcher(ToyDenoiser(), config, order, ItemStore(items, config.seed), ProcessGroup())
    return feed.get(0, 1)


def test_items_with_a_class_come_again_in_batches_of_their_own(tmp_path: Path) -> None:
    """Same noise, level and weight, other caption; captions that cannot be one batch run in turn."""
    config = weighed(make_config(batch_size=4), 0.5)
    first, *second = micro_batches(with_classes(make_encoded(tmp_path), 3, 0, 3, 5), config)
    assert not first.preserves and all(m.preserves and m.mask is None for m in second)
    assert sorted(len(m.factor) for m in second) == [1, 2]
    assert len({first.place, *(m.place for m in second)}) == 3
    assert float(sum(m.factor.sum() for m in second)) == pytest.approx(0.5 * 3 / 4)
    own = {tuple(row.flatten().tolist()) for row in first.noised.noisy}
    again = [tuple(row.flatten().tolist()) for m in second for row in m.noised.noisy]
    assert len(set(again)) == 3 and own.issuperset(again)
    assert len(micro_batches(with_classes(make_encoded(tmp_path), 3, 0, 3, 5), weighed(config, 0.0))) == 1


def run(encoded: EncodedDataset, config: TrainConfig, folder: Path, **options: Any) -> TrainResult:
    return train(ToyDenoiser(), encoded, config, run_folder=folder, **options)


def test_the_loss_is_the_sum_of_both_terms(tmp_path: Path) -> None:
    """Against a formula: mean over items of |f_A(x, c) - v|^2 + w |f_A(x, k) - f(x, k)|^2, f an untouched network."""
    encoded = with_classes(make_encoded(tmp_path), 3, 3, 3, 3)
    config = weighed(make_config(steps=1, batch_size=4), 0.7)
    config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, init="orthogonal"))
    start = moved(config)
    found = run(encoded, config, tmp_path / "run", start_from=start)
    adapted, untouched = ToyDenoiser(), ToyDenoiser()
    plain, kept = micro_batches(encoded, config)
    with adapted.session(), untouched.session(), torch.no_grad():
        make_adapter(adapted.module, config.adapter, config.seed).load_state_dict(start)

        def error(m: MicroBatch, target: Tensor) -> Tensor:
            answer = adapted.forward(m.noised.noisy, m.noised.timestep, m.conditioning)
            return objective.loss_per_item(answer, target).mean()

        frozen = untouched.forward(kept.noised.noisy, kept.noised.timestep, kept.conditioning)
        expected = error(plain, plain.noised.target) + 0.7 * error(kept, frozen)
        assert float(error(kept, frozen)) > 1e-4, "the adapter that it starts from changes something"
    assert found.losses[0] == pytest.approx(float(expected), rel=1e-5)


def moved(config: TrainConfig) -> dict[str, Tensor]:
    """An adapter's state dict whose update is not zero."""
    draws, denoiser = torch.Generator().manual_seed(4), ToyDenoiser()
    with denoiser.session():
        state = make_adapter(denoiser.module, config.adapter, config.seed).state_dict()
    return {name: value + 0.2 * torch.randn(value.shape, generator=draws) for name, value in state.items()}


def test_weight_0_and_items_without_are_the_plain_run_to_the_bit(tmp_path: Path) -> None:
    plain = make_encoded(tmp_path)
    config = make_config(steps=4, dropout=0.2)
    before = run(plain, config, tmp_path / "a")
    off = run(with_classes(plain, 3, 3, 3, 3), weighed(config, 0.0), tmp_path / "b")
    heavy = run(plain, weighed(config, 50.0), tmp_path / "c")
    for other in (off, heavy):
        assert other.losses == before.losses
        assert all(torch.equal(other.adapter[name], value) for name, value in before.adapter.items())


def test_resumed_recomputed_and_streamed_it_is_the_same_run(tmp_path: Path) -> None:
    encoded = with_classes(make_encoded(tmp_path, count=6), 3, 5, 0, 3, 5, 4)
    config = make_config(steps=6, batch_size=3, dropout=0.2, gradient_accumulation=2)
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


def test_the_model_stays_nearer_to_what_it_was(tmp_path: Path) -> None:
    """On the class's captions; the plain run of the same length is the yardstick."""
    encoded = with_classes(make_encoded(tmp_path), 3, 3, 3, 3)
    config = make_config(steps=60, batch_size=4)
    drifts = []
    for weight in (0.0, 3.0):
        found = run(encoded, weighed(config, weight), tmp_path / f"{weight}")
        assert found.losses[-1] < found.losses[0]
        adapted, untouched = ToyDenoiser(), ToyDenoiser()
        _, kept = micro_batches(encoded, weighed(config, 1.0))
        with adapted.session(), untouched.session(), torch.no_grad():
            make_adapter(adapted.module, config.adapter, config.seed).load_state_dict(found.adapter)
            answers = [
                d.forward(kept.noised.noisy, kept.noised.timestep, kept.conditioning)
                for d in (adapted, untouched)
            ]
        drifts.append(float((answers[0] - answers[1]).square().mean()))
    assert drifts[1] < 0.5 * drifts[0], drifts


@pytest.mark.parametrize(
    "config",
    [
        *(AdapterConfig(kind=kind, rank=4, alpha=4.0) for kind in ("lora", "dora", "loha", "lokr", "oft")),
        *(AdapterConfig(init=init, rank=4, alpha=4.0) for init in ("orthogonal", "pissa")),
        AdapterConfig(rank=4, alpha=4.0, dropout=0.5, rank_dropout=0.5),
        AdapterConfig(kind="loha", rank=4, alpha=4.0, dropout=0.1),
    ],
    ids=str,
)
def test_switched_off_the_network_is_the_untouched_one(config: AdapterConfig) -> None:
    denoiser, untouched = ToyDenoiser(), ToyDenoiser()
    noisy, text = torch.randn(2, 4, 1, 2, 2), torch.randn(2, 3, TEXT)
    given = (noisy, torch.tensor([100.0, 900.0]), {"cross_attn": text})
    with denoiser.session(), untouched.session(), torch.no_grad():
        adapter = make_adapter(denoiser.module, config, 1)
        state = adapter.state_dict()
        draws = torch.Generator().manual_seed(1)
        adapter.load_state_dict(
            {
                name: value if "start_" in name else value + 0.3 * torch.randn(value.shape, generator=draws)
                for name, value in state.items()
            }
        )
        adapter.set_step(1, 0)
        expected, before = untouched.forward(*given), denoiser.forward(*given)
        assert not torch.allclose(before, expected, atol=1e-3)
        with adapter.switched_off():
            assert torch.equal(denoiser.forward(*given), expected)
        assert torch.equal(denoiser.forward(*given), before), "and on again, with the same dropout"


def test_an_update_in_backward_is_refused(tmp_path: Path) -> None:
    encoded = with_classes(make_encoded(tmp_path), 3, 3, 3, 3)
    config = make_config(update_in_backward=True, max_grad_norm=0.0)
    with pytest.raises(KilnError, match="update_in_backward takes one backward a step"):
        run(encoded, config, tmp_path / "run")
    assert run(encoded, weighed(dataclasses.replace(config, steps=1), 0.0), tmp_path / "off").step == 1
