"""Optimizers by name, and LoRA+."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainer.config import OptimizerConfig
from trainer.errors import KilnError
from trainer.loop.optim import make_optimizer
from trainer.loop.trainable import Trainable

from ..toy import ToyDenoiser, make_config


def test_lora_plus_moves_b_faster() -> None:
    denoiser = ToyDenoiser()
    config = make_config(lora_plus_ratio=8.0, schedule="constant", warmup_ratio=0.0, learning_rate=0.01)
    with denoiser.session():
        trainable = Trainable(denoiser, config, weights=_resident())
        before = trainable.adapter.state_dict()
        for buffer in trainable.buffers:
            buffer.grad.fill_(1)
        trainable.set_learning_rate(0)
        trainable.optimizer_step()
        after = trainable.adapter.state_dict()
    moved = {k: float((after[k] - before[k]).abs().mean()) for k in before}
    a = [v for k, v in moved.items() if "lora_A" in k]
    b = [v for k, v in moved.items() if "lora_B" in k]
    assert a == pytest.approx([0.01] * len(a), rel=1e-2) and b == pytest.approx([0.08] * len(b), rel=1e-2)


def _resident() -> Any:
    from trainer.adapter.frozen_weights import resident_weights

    return resident_weights


def test_an_optimizer_that_is_not_installed_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("trainer.loop.optim.importlib.import_module", absent)
    for name, package in (
        ("adamw_8bit", "bitsandbytes"),
        ("lion", "pytorch-optimizer"),
        ("prodigy", "pytorch-optimizer"),
    ):
        with pytest.raises(KilnError, match=f"pip install {package}"):
            make_optimizer([nn.Parameter(torch.zeros(1))], OptimizerConfig(optimizer=name))


def test_an_optimizer_that_does_not_exist_is_named() -> None:
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(KilnError, match="There is no optimizer 'adamm'"):
        make_optimizer([nn.Parameter(torch.zeros(1))], OptimizerConfig(optimizer="adamm"))
