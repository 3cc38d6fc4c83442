"""Runs on a card that is too small: what is given up first, what is said, and that nothing else changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pretend_card import VARIABLE, PretendCard
from trainer.adapter.targets import choose_targets
from trainer.config import GuardConfig, MemoryConfig, TrainConfig
from trainer.errors import KilnError
from trainer.events import MessageEvent
from trainer.loop import train as loop
from trainer.loop.train import train
from trainer.memory.estimate import estimate
from trainer.memory.shared_clone import SharedClone

from ..toy import CHANNELS, ToyBlock, ToyDenoiser, make_config, make_encoded

SHAPE = (CHANNELS, 1, 48, 48)
BLOCKS, BATCH = 8, 4


class DeepDenoiser(ToyDenoiser):
    def __init__(self) -> None:
        super().__init__()
        draws = torch.random.fork_rng(devices=[])
        with draws, torch.inference_mode():
            torch.manual_seed(3)
            for _ in range(BLOCKS - len(self.network.blocks)):
                self.network.blocks.append(ToyBlock())
        self.clone = SharedClone(self.network)


class Run:
    def __init__(self, folder: Path, size: int, **options: Any) -> None:
        self.messages: list[str] = []
        config = dataclasses.replace(make_config(steps=2, batch_size=BATCH), **options)
        encoded = make_encoded(folder / "items", count=BATCH, shapes=(SHAPE,))
        self.card = PretendCard(size)
        with self.card:
            self.result = train(
                DeepDenoiser(), encoded, config, run_folder=folder / f"run {size}", emit=self._listen
            )

    def _listen(self, event: Any) -> None:
        if isinstance(event, MessageEvent):
            self.messages.append(event.text)

    @property
    def adapter(self) -> dict[str, Tensor]:
        return self.result.adapter


ENDLESS = 1 << 50


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    folder = tmp_path_factory.mktemp("peaks")
    recomputed = {"memory": MemoryConfig(level="checkpoint activations")}
    return {
        "resident": Run(folder / "a", ENDLESS).card.peak,
        "recomputed": Run(folder / "b", ENDLESS, **recomputed).card.peak,
        "in parts": Run(folder / "c", ENDLESS, batch_size=1, **recomputed).card.peak,
    }


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-5) for k in a)


def test_blocks_are_recomputed_first(tmp_path: Path, peaks: dict[str, int]) -> None:
    whole = Run(tmp_path / "whole", ENDLESS)
    small = Run(tmp_path / "small", (peaks["resident"] + peaks["recomputed"]) // 2)
    assert small.card.refused and small.card.peak <= small.card.size
    assert [
        m for m in small.messages if "memory is full (pretend card" in m and "activation checkpointing" in m
    ]
    assert not any("parts" in m for m in small.messages)
    assert all(torch.equal(small.adapter[k], v) for k, v in whole.adapter.items())


def test_then_the_batch_is_cut(tmp_path: Path, peaks: dict[str, int]) -> None:
    whole = Run(tmp_path / "whole", ENDLESS)
    small = Run(tmp_path / "small", (peaks["recomputed"] + peaks["in parts"]) // 2)
    assert any("each batch in 2 parts" in m for m in small.messages)
    assert small.result.step == 2 and close(small.adapter, whole.adapter)


def test_what_does_not_fit_at_all_is_said(tmp_path: Path, peaks: dict[str, int]) -> None:
    with pytest.raises(KilnError, match="does not suffice for one item"):
        Run(tmp_path, peaks["in parts"] // 3)
    off = GuardConfig(retry_out_of_memory=False)
    with pytest.raises(KilnError, match="does not suffice for one item"):
        Run(tmp_path / "off", (peaks["resident"] + peaks["recomputed"]) // 2, guards=off)


def test_no_room_for_the_optimizers_state_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards: list[PretendCard] = []
    original = loop.guards.optimizer_step

    def full(step: Any, parameters: Any) -> None:
        cards[0].size = cards[0].live
        original(step, parameters)

    monkeypatch.setattr(loop.guards, "optimizer_step", full)
    monkeypatch.setattr(PretendCard, "__enter__", _remember(cards))
    with pytest.raises(KilnError, match="does not suffice for the optimizer"):
        Run(tmp_path, ENDLESS)


def _remember(cards: list[PretendCard]) -> Any:
    enter = PretendCard.__enter__

    def remembered(self: PretendCard) -> PretendCard:
        cards.append(self)
        enter(self)
        return self

    return remembered


def test_the_next_batch_waits_when_there_is_no_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(tmp_path / "whole", ENDLESS)
    cards: list[PretendCard] = []
    original = loop.guards.prefetch
    monkeypatch.setattr(PretendCard, "__enter__", _remember(cards))

    def full(work: Any) -> None:
        with _full(cards[0]):
            original(work)

    monkeypatch.setattr(loop.guards, "prefetch", full)
    small = Run(tmp_path / "small", ENDLESS)
    assert small.card.refused == 1
    assert all(torch.equal(small.adapter[k], v) for k, v in whole.adapter.items())


@contextmanager
def _full(card: PretendCard) -> Iterator[None]:
    size, card.size = card.size, card.live
    yield
    card.size = size


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_what_auto_chooses_fits(
    tmp_path: Path, peaks: dict[str, int], monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """The planner is told the card's size as the host tells it, and the run stays below."""
    monkeypatch.setenv(VARIABLE, str(1.3 * share * peaks["resident"] / 2**30))
    size = PretendCard().size
    config = make_config(steps=2, batch_size=BATCH)
    chosen = _plan(config, size)
    assert (chosen.level == "resident") == (share == 1.0)
    run = Run(tmp_path, size, memory=chosen)
    assert not run.card.refused and run.card.peak <= size


def test_scales_of_a_streamed_base_stay_on_the_device() -> None:
    """One more block adds nothing else to the weights."""

    def weights(blocks: int, precision: str) -> int:
        network = DeepDenoiser().network.bfloat16()
        network.blocks = network.blocks[:blocks]
        targets = choose_targets(network, "")
        memory = MemoryConfig(level="stream blocks", base_precision=precision)
        config = dataclasses.replace(make_config(), memory=memory)
        return estimate(network, targets, config, SHAPE, bytes_per_value=2, trained=1).weights

    layers = [m for m in DeepDenoiser().network.blocks[0].modules() if isinstance(m, nn.Linear)]
    assert weights(6, "as it is") == weights(5, "as it is")
    assert weights(6, "fp8") - weights(5, "fp8") == sum(4 * m.out_features for m in layers)
    assert weights(6, "nf4") - weights(5, "nf4") == sum(m.weight.numel() // 64 for m in layers)


def _plan(config: TrainConfig, free: int) -> MemoryConfig:
    network = DeepDenoiser().network
    targets = choose_targets(network, "")
    trained = sum(4 * (m.in_features + m.out_features) for n, m in network.named_modules() if n in targets)
    config = dataclasses.replace(config, memory=MemoryConfig(level="auto"))
    network.patch_size = 1  # type: ignore[assignment]
    return estimate(
        network, targets, config, SHAPE, bytes_per_value=4, trained=trained, free=free, streams=False
    ).memory
