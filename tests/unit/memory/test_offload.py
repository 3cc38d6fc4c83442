"""Block inputs in CPU memory: the same values, little more pinned memory than they take, and given back in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainer.memory
from tests.pretend_device import NAME, PINNED, pretend_device, pretending
from trainer.memory import offload, streams
from trainer.memory.recompute import checkpoint_blocks

GIB = 1 << 30


@pytest.mark.parametrize("shape", [(), (0, 3), (7, 5), (3, 4, 8)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_values_come_back(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], kind: Any) -> None:
    monkeypatch.setattr(offload, "PIECE", 32)
    tensor = torch.randn(shape).to(kind)
    views = [tensor]
    if tensor.numel() > 1:
        views += [tensor.transpose(0, -1), tensor[1:], tensor[:1].expand(3, *shape[1:])]
    for each in views:
        expected = each.clone()
        packed = offload.pack(each)
        found = offload.unpack(packed)
        assert torch.equal(found, expected) and found.dtype == kind
        assert found.stride() == torch.empty_like(each).stride()
        tensor.add_(1)  # a network writes into its input
        assert torch.equal(offload.unpack(packed), expected)


def test_pinned_memory_is_what_the_plan_says() -> None:
    """The input of a block of Wan 14B at 480x832x81: one piece would be rounded up to half a GiB."""
    with pretending(trainer.memory) as counted:
        x = torch.empty(1, 21 * 30 * 52, 5120, dtype=torch.bfloat16, device=pretend_device())
        size, before = x.nbytes, counted.live[PINNED]
        packed = offload.pack(x)
        taken = counted.live[PINNED] - before
        assert taken == offload.pinned_bytes(size) and size <= taken < 1.05 * size < 0.5 * GIB
        assert offload.unpack(packed).device.type == NAME
        del packed
        assert counted.live[PINNED] == before


def test_autograd_keeps_nothing_on_the_device() -> None:
    with pretending(trainer.memory) as counted:
        x = torch.empty(1024, 1024, device=pretend_device(), requires_grad=True)
        before = counted.live[NAME]
        with offload.on_cpu():
            y = (x * 2).exp()
        assert counted.live[NAME] - before == y.nbytes and counted.live[PINNED] == y.nbytes
        y.sum().backward()
        assert x.grad is not None and x.grad.device == x.device


@pytest.mark.parametrize("newer", [True, False])
def test_pinned_memory_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch, newer: bool) -> None:
    called = []
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: called.append("public"), raising=False)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: called.append("private"), raising=False)
    if not newer:
        monkeypatch.delattr(torch.accelerator, "empty_host_cache")
    streams.Streams(torch.device("cpu")).free_pinned()
    assert called == ["public" if newer else "private"]


class Block(nn.Module):
    """What it saves hangs on how its input lies in memory: torch's linear layer flattens what it can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_inputs_that_are_transposed_are_recomputed() -> None:
    """As a network's first block gets the patches of a latent."""
    found = []
    for offloaded in (False, True):
        network = Network()
        checkpoint_blocks(network, offloaded)
        x = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
        network(x.transpose(1, 2)).square().sum().backward()
        found.append([x.grad, *(p.grad for p in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
