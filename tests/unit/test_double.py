"""Nothing computes in float64 on a device that has none, as Apple's; tried on the pretend device, where it raises."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import trainer.memory
from tests.pretend_device import Allocations, pretend_device, pretending
from trainer.config import MemoryConfig, ValidationConfig
from trainer.loop.train import train
from trainer.lora_files import merge, resize
from trainer.lora_files.svd import dense_svd, product_svd, rank_for_energy

from .memory.test_pretend_device import LEVELS, PretendDenoiser, pretend
from .toy import hold_out, make_config, make_encoded


@contextmanager
def without_float64() -> Iterator[Allocations]:
    with pretending(trainer.memory) as counted:
        counted.has_float64 = False
        yield counted


def lora() -> dict[str, Tensor]:
    return {
        "diffusion_model.a.lora_A.weight": torch.randn(4, 12),
        "diffusion_model.a.lora_B.weight": torch.randn(8, 4),
        "diffusion_model.a.alpha": torch.tensor(2.0),
    }


def test_it_raises_there() -> None:
    with without_float64(), pytest.raises(TypeError, match="float64"):
        torch.randn(3, device=pretend_device()).double()


@pytest.mark.parametrize("method", ["exact", "svd", "ties"])
def test_merging_and_resizing(method: str) -> None:
    with without_float64():
        device = pretend_device()
        assert merge.merge_loras([lora(), lora()], [0.5, 0.5], method, rank=2, device=device)
        assert resize.resize(lora(), 2, 0.9, device)


def test_singular_values() -> None:
    with without_float64():
        b, a = torch.randn(8, 4, device=pretend_device()), torch.randn(4, 12, device=pretend_device())
        for found in (product_svd(b, a), dense_svd(b @ a, 2)):
            assert {t.device.type for t in found} == {b.device.type}
            assert rank_for_energy(found[1], 0.9) >= 1


def test_training_and_validating(tmp_path: Path) -> None:
    config = dataclasses.replace(
        make_config(steps=2, ema_decay=0.9),
        memory=MemoryConfig(**LEVELS["streamed, inputs offloaded"]),
        validation=ValidationConfig(every=1),
    )
    encoded = hold_out(make_encoded(tmp_path / "items", count=5), 1)
    with pretend() as counted:
        counted.has_float64 = False
        result = train(PretendDenoiser(), encoded, config, run_folder=tmp_path / "run")
    assert result.step == 2 and len(result.validation) == 3


def test_no_other_place_asks_for_it() -> None:
    """What a device computes goes through to_double; the rest is on the CPU, and named here."""
    on_the_cpu = {"trainer/lora_files/double.py", "trainer/loop/validation.py"}
    root = Path(__file__).resolve().parents[2]
    found = {
        path.relative_to(root).as_posix()
        for folder in ("trainer", "nodes")
        for path in (root / folder).rglob("*.py")
        if ".double()" in path.read_text("utf-8")
    }
    assert found == on_the_cpu
