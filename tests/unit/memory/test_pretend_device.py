"""Whole runs on a device that exists in Python only (tests/pretend_device.py), where mixing devices raises."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torch import Tensor

import trainer.memory
from tests.pretend_device import (
    NAME,
    PINNED,
    Allocations,
    pretend_device,
    pretending,
    rounded,
    without_pretending,
)
from tests.unit.toy import CHANNELS, ToyDenoiser, ToyNetwork, hold_out, make_config, make_encoded
from trainer.config import (
    AdapterConfig,
    GuardConfig,
    MemoryConfig,
    SampleConfig,
    TrainConfig,
    ValidationConfig,
)
from trainer.dataset import encoded as encoded_files
from trainer.events import CheckpointEvent, StepEvent
from trainer.loop.train import train
from trainer.runs import checkpoint

LEVELS: dict[str, dict[str, Any]] = {
    "resident": {"level": "resident"},
    "resident, fp8": {"level": "resident", "base_precision": "fp8"},
    "resident, nf4": {"level": "resident", "base_precision": "nf4"},
    "recomputed": {"level": "checkpoint activations"},
    "recomputed, inputs offloaded": {"level": "checkpoint activations", "offload_block_inputs": True},
    "streamed": {"level": "stream blocks"},
    "streamed, inputs offloaded": {"level": "stream blocks", "offload_block_inputs": True},
    "streamed, fp8": {"level": "stream blocks", "base_precision": "fp8"},
    "streamed, nf4": {"level": "stream blocks", "base_precision": "nf4"},
}


class PretendDenoiser(ToyDenoiser):
    """The toy on the pretend device; whole, or kept in CPU memory as the host does when it is asked for room."""

    device = pretend_device()

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.network = ToyNetwork()
        self.network.requires_grad_(False)
        for _ in range(2, blocks):
            self.network.blocks.append(type(self.network.blocks[0])())
        self.network.requires_grad_(False)
        self.clone = trainer.memory.shared_clone.SharedClone(self.network)

    @contextmanager
    def session(self, whole: bool = True, file: Path | None = None) -> Iterator[str]:
        self.network.to(self.device if whole else "cpu")
        with self.clone.weights():
            yield ""


@contextmanager
def pretend() -> Iterator[Allocations]:
    """With files that are read and written for real: what has no values is written as zeros."""
    with ExitStack() as entered:
        for module, name in (
            (encoded_files, "load"),
            (checkpoint, "save_file"),
            (checkpoint, "read_tensors"),
        ):
            function = without_pretending(getattr(module, name))
            entered.enter_context(mock.patch.object(module, name, function))
        yield entered.enter_context(pretending(trainer.memory))


def run(folder: Path, config: TrainConfig, **options: Any) -> Any:
    encoded = hold_out(make_encoded(folder / "items", count=5), 1)
    with pretend():
        return train(PretendDenoiser(), encoded, config, run_folder=folder / "run", **options)


def held_after_steps(folder: Path, memory: dict[str, Any], blocks: int) -> list[int]:
    """Bytes on the device after each step but the first, in which the optimizer makes its state."""
    held: list[int] = []
    config = dataclasses.replace(make_config(steps=5), memory=MemoryConfig(**memory))
    encoded = make_encoded(folder / f"{blocks} {memory['level']}")
    with pretend() as counted:

        def look(event: Any) -> None:
            if isinstance(event, StepEvent):
                gc.collect()
                held.append(counted.live[NAME])

        train(PretendDenoiser(blocks), encoded, config, run_folder=folder / "run", emit=look)
    return held[1:-1]  # at the last there is no next batch


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_kept_after_a_step(tmp_path: Path, level: str) -> None:
    held = held_after_steps(tmp_path, LEVELS[level], 3)
    assert len(set(held)) == 1


def test_two_blocks_are_in_flight_whatever_their_number(tmp_path: Path) -> None:
    few, many = 3, 9

    def growth(level: str) -> int:
        return (
            held_after_steps(tmp_path, LEVELS[level], many)[0]
            - held_after_steps(tmp_path, LEVELS[level], few)[0]
        )

    block = sum(rounded(NAME, p.numel() * 4) for p in ToyNetwork().blocks[0].parameters())
    streamed = growth("streamed")
    assert growth("resident") - streamed == (many - few) * block
    scales = rounded(NAME, 16 * 4) + rounded(NAME, CHANNELS * 4)  # of q and o; they stay
    assert growth("streamed, fp8") - streamed == (many - few) * scales


def test_pinned_memory_is_given_back_when_a_run_leaves_the_device(tmp_path: Path) -> None:
    """torch would keep it, and with it most of the RAM of the machine."""
    config = dataclasses.replace(
        make_config(steps=2), memory=MemoryConfig(**LEVELS["streamed, inputs offloaded"])
    )
    encoded = make_encoded(tmp_path / "items")
    with pretend() as counted:
        train(PretendDenoiser(), encoded, config, run_folder=tmp_path / "run")
    assert counted.peak[PINNED] > 0 and counted.pinned_at_the_end == [0]


@pytest.mark.parametrize("level", LEVELS)
def test_every_memory_level_keeps_devices_apart(tmp_path: Path, level: str) -> None:
    config = dataclasses.replace(make_config(steps=3), memory=MemoryConfig(**LEVELS[level]))
    assert run(tmp_path, config).step == 3


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])
@pytest.mark.parametrize("level", ["resident", "streamed, inputs offloaded"])
def test_every_kind_of_adapter_keeps_devices_apart(tmp_path: Path, kind: str, level: str) -> None:
    adapter = AdapterConfig(kind=kind, rank=4, alpha=4.0, dropout=0.1)
    config = dataclasses.replace(make_config(steps=2), adapter=adapter, memory=MemoryConfig(**LEVELS[level]))
    assert run(tmp_path, config).step == 2


@pytest.mark.parametrize("options", [
    {"optimizer": "adafactor"},
    {"optimizer": "lion"},
    {"optimizer": "schedule_free_adamw"},
    {"ema_decay": 0.9},
    {"update_in_backward": True, "max_grad_norm": 0.0},
    {"lora_plus_ratio": 4.0},
    {"gradient_accumulation": 2},
], ids=str)  # fmt: skip
def test_optimizers_and_averages_keep_devices_apart(tmp_path: Path, options: dict[str, Any]) -> None:
    config = dataclasses.replace(
        make_config(steps=2, **options),
        memory=MemoryConfig(level="stream blocks"),
        validation=ValidationConfig(every=1),
        guards=GuardConfig(spike_factor=2.0),
    )
    assert run(tmp_path, config).step == 2


def test_samples_between_steps_and_resuming_keep_devices_apart(tmp_path: Path) -> None:
    drawn: list[int] = []

    class Sampler:
        def draw(self, adapter: dict[str, Tensor] | None, step: int) -> Iterator[Any]:
            drawn.append(step)
            return iter(())

    config = dataclasses.replace(
        make_config(steps=4, ema_decay=0.9),
        memory=MemoryConfig(level="stream blocks", offload_block_inputs=True),
        sample=SampleConfig(prompts="a", every=1),
        checkpoint_every=2,
    )
    saved: list[Path] = []
    run(
        tmp_path,
        config,
        emit=lambda event: saved.append(event.path) if isinstance(event, CheckpointEvent) else None,
        sampler=Sampler(),
    )
    assert drawn
    assert run(tmp_path, config, resume_from=saved[0]).step == 4
