"""Parameters in one vector: the same values, gradients and steps as apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.adapter.flat_parameter import flatten_parameters
from trainer.config import OptimizerConfig
from trainer.loop.optim import make_optimizer, wants_shapes


def make_parameters() -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draws)) for shape in ((4, 6), (3, 6), (5, 2))]


def test_values_and_gradients_are_views() -> None:
    apart, together = make_parameters(), make_parameters()
    flat = flatten_parameters(together)
    assert flat.shape == (4 * 6 + 3 * 6 + 5 * 2,)
    for a, b in zip(apart, together, strict=True):
        assert torch.equal(a, b)
    for parameters in (apart, together):
        sum((p * p).sum() * i for i, p in enumerate(parameters, 1)).backward()  # type: ignore[union-attr]
    assert flat.grad is not None
    assert torch.equal(flat.grad, torch.cat([p.grad.flatten() for p in apart if p.grad is not None]))
    flat.grad.zero_()
    assert all(p.grad is not None and not p.grad.any() for p in together)
    with torch.no_grad():
        flat.fill_(7)
    assert all((p == 7).all() for p in together)


@pytest.mark.parametrize("name", ["adamw", "lion", "prodigy", "schedule_free_adamw"])
def test_optimizers_step_alike(name: str) -> None:
    options = OptimizerConfig(optimizer=name, learning_rate=0.01, weight_decay=0.1)
    assert not wants_shapes(options)
    apart, together = make_parameters(), make_parameters()
    flat = flatten_parameters(together)
    optimizers = [make_optimizer(apart, options), make_optimizer([flat], options)]
    for optimizer in optimizers:
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()  # type: ignore[attr-defined]
    for step in range(5):
        for parameters in (apart, together):
            for index, parameter in enumerate(parameters):
                gradient = torch.sin(parameter.detach() * (step + index + 1))
                if parameter.grad is None:
                    parameter.grad = gradient
                else:
                    parameter.grad.copy_(gradient)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_what_looks_at_matrices_gets_matrices() -> None:
    assert wants_shapes(OptimizerConfig(optimizer="adafactor")) and wants_shapes(
        OptimizerConfig(optimizer="Muon")
    )
