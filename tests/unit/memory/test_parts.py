"""Attention and MLP computed again apart: the gradients of the whole network, at every way of computing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.adapter.inject import make_adapter
from trainer.config import AdapterConfig
from trainer.memory import parts
from trainer.memory.blocks import find_blocks, is_token_wise, parts_of
from trainer.memory.copy_on_write import WriteCheck
from trainer.memory.recompute import checkpoint_blocks

DIM, TOKENS, BLOCKS = 16, 11, 3


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor, *, context: Tensor, options: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        y = F.scaled_dot_product_attention(self.q(x), self.k(context), self.v(context))
        return self.o(y), options["shift"] * x


class Block(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(DIM), Attention()
        self.mlp = nn.Sequential(nn.Linear(DIM, 3 * DIM), nn.GELU(), nn.Linear(3 * DIM, DIM))
        self.in_place = in_place

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Tensor]) -> Tensor:
        y, z = self.attention(self.norm(x), context=context, options=options)
        x = x + y + z
        y = self.mlp(x)
        if self.in_place:
            x += y
            return x
        return x + y


class Network(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(in_place) for _ in range(BLOCKS))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, context, {"shift": context[:, :1] * 0.1})
        return x


@contextmanager
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CHUNK", 4)
        yield


def steps(network: Network, kind: str, apart: bool, offload: bool = False) -> list[Tensor]:
    """Loss and gradients of three steps; the first finds out whether the network writes in place."""
    network = copy.deepcopy(network).requires_grad_(False)
    if apart:
        checkpoint_blocks(network, offload)
        for block in find_blocks(network):
            parts.recompute_parts(block, in_chunks=True)
    adapter = make_adapter(network, AdapterConfig(kind=kind, rank=4, alpha=4.0, dropout=0.0), 0)
    draws = torch.Generator().manual_seed(3)
    adapter.load_state_dict(
        {k: 0.1 * torch.randn(v.shape, generator=draws) for k, v in adapter.state_dict().items()}
    )
    check, found = WriteCheck(), []
    x, context = torch.randn(2, TOKENS, DIM, generator=draws), torch.randn(2, 5, DIM, generator=draws)
    for step in range(3):
        with check.forward(network):
            loss = network(x * (step + 1), context).square().mean()
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in adapter.parameters() if p.grad is not None)]
        for p in adapter.parameters():
            p.grad = None
    return found


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
def test_gradients_are_those_of_the_resident_network(kind: str, in_place: bool) -> None:
    torch.manual_seed(0)
    network = Network(in_place)
    expected = steps(network, kind, apart=False)
    assert len(expected) > 3 * BLOCKS * 6
    with small_chunks():
        for offload in (False, True):
            found = steps(network, kind, apart=True, offload=offload)
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_without_chunks_they_are_the_same_bit_for_bit() -> None:
    torch.manual_seed(0)
    network = Network(False)
    for ours, theirs in zip(steps(network, "lora", True), steps(network, "lora", False), strict=True):
        assert torch.equal(ours, theirs)


def test_each_part_is_computed_three_times_a_step() -> None:
    network = Network(False).requires_grad_(False)
    checkpoint_blocks(network)
    for block in find_blocks(network):
        parts.recompute_parts(block, in_chunks=True)
    make_adapter(network, AdapterConfig(rank=4, alpha=4.0, dropout=0.0), 0)
    calls: list[nn.Module] = []
    for block in network.blocks:
        for part in (block.attention, block.mlp):
            part.register_forward_pre_hook(lambda module, args: calls.append(module))
            inner = part.__dict__["forward"]._forward
            part.__dict__["forward"]._forward = lambda *a, inner=inner, m=part, **k: (
                calls.append(m),
                inner(*a, **k),
            )[1]
    network(torch.randn(2, TOKENS, DIM), torch.randn(2, 5, DIM)).sum().backward()
    first = network.blocks[0]
    # Called in forward and again with its block; computed then, and once more on its own
    assert calls.count(first.attention) == calls.count(first.mlp) == 2 + 3


def test_an_updated_weight_is_updated_once() -> None:
    network = Network(False).requires_grad_(False)
    checkpoint_blocks(network)
    for block in find_blocks(network):
        parts.recompute_parts(block, in_chunks=True)
    adapter = make_adapter(network, AdapterConfig(rank=4, alpha=4.0, dropout=0.0), 0)
    updated: list[Tensor] = []
    for p in adapter.parameters():
        p.register_post_accumulate_grad_hook(updated.append)
    with small_chunks():
        network(torch.randn(2, TOKENS, DIM), torch.randn(2, 5, DIM)).sum().backward()
    assert len(updated) == len(adapter.parameters()) == len(set(map(id, updated)))


def test_parts_are_found_by_their_layers() -> None:
    block = Block(False)
    assert parts_of(block) == [block.attention, block.mlp]
    assert is_token_wise(block.mlp) and not is_token_wise(block.attention)
    assert not is_token_wise(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
