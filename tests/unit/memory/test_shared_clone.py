"""The shared clone of a module tree: same memory, modules of its own."""

from __future__ import annotations

import torch
from torch import nn

from trainer.memory.shared_clone import SharedClone

from ..toy import ToyDenoiser


def test_clone_shares_memory_and_sheds_inference() -> None:
    denoiser = ToyDenoiser()
    original = denoiser.network.text.weight
    assert original.is_inference()
    with denoiser.session():
        weight = denoiser.module.text.weight
        assert (
            weight.data_ptr() == original.data_ptr()
            and not weight.is_inference()
            and not weight.requires_grad
        )
    assert not list(denoiser.module.parameters())
    assert denoiser.network.text.weight is original


def test_clone_keeps_shared_modules_shared() -> None:
    layer = nn.Linear(2, 2)
    with SharedClone(nn.ModuleList([layer, layer])).weights() as module:
        assert module[0] is module[1]


def test_clone_follows_moved_weights() -> None:
    """The host replaces parameters and flips attributes when it moves a model."""
    model = nn.ModuleList([nn.Linear(2, 2)])
    clone = SharedClone(model)
    model[0].weight = nn.Parameter(torch.full((2, 2), 5.0))
    model[0].comfy_cast_weights = True
    with clone.weights() as module:
        assert module[0].weight.unique().item() == 5.0 and module[0].comfy_cast_weights
