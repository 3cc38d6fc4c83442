"""Networks that write in place have the gradients of the same networks that do not, at every memory level."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trainer.memory.copy_on_write import CopyOnWrite, WriteCheck
from trainer.memory.recompute import checkpoint_blocks


class Block(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.norm = nn.LayerNorm(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, seen: dict[str, Tensor]) -> Tensor:
        first, second = self.first(self.norm(x)).square(), self.second
        if self.in_place:
            x += first
            first.sigmoid_().mul_(2)  # square and sigmoid have saved it
            x[:, 1:] += second(x)[:, 1:] * first[:, 1:]
            seen["sum"] += 1  # has no gradient, and the next block reads it
        else:
            x = x + first
            first = first.sigmoid() * 2
            x = torch.cat([x[:, :1], x[:, 1:] + second(x)[:, 1:] * first[:, 1:]], 1)
            seen["sum"] = seen["sum"] + 1
        return torch.tanh(x) * seen["sum"]


class Network(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(in_place) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        seen = {"sum": torch.zeros(1)}
        for block in self.blocks:
            x = block(x, seen)
        return x


def gradients(network: nn.Module, check: WriteCheck) -> list[Tensor]:
    network.zero_grad()
    x = torch.linspace(-1, 1, 80).reshape(2, 5, 8)  # without a gradient: the first block's input
    with check.forward(network):
        answer = network(x.clone())
    answer.square().sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


WAYS: dict[str, Callable[[nn.Module], object]] = {
    "resident": lambda network: None,
    "recomputed": checkpoint_blocks,
    "inputs in CPU memory": lambda network: checkpoint_blocks(network, offload_inputs=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_writing_in_place_changes_no_gradient(way: str) -> None:
    expected = gradients(Network(False), WriteCheck())
    network, check = Network(True), WriteCheck()
    WAYS[way](network)
    for _ in range(3):
        found = gradients(network, check)
        assert len(found) == len(expected) == 18
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert check.needed(way != "resident")


@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_does_not_is_left_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, check = Network(False), WriteCheck()
    WAYS[way](network)
    gradients(network, check)
    assert not check.needed(way != "resident")
    monkeypatch.setattr(CopyOnWrite, "forward", lambda self: pytest.fail("it is watched"))
    gradients(network, check)


def test_until_a_block_has_been_recomputed_nothing_is_known() -> None:
    """Two micro-batches whose forwards come first, and a forward without a backward."""
    network, check = Network(False), WriteCheck()
    checkpoint_blocks(network)
    for _ in range(2):
        with check.forward(network):
            answer = network(torch.ones(1, 5, 8))
        assert check.needed(True)
    answer.sum().backward()
    assert not check.needed(True)
    assert check.needed(False), "resident is another way of computing"


def test_each_saved_tensor_is_copied_once_and_only_where_it_is_written_into() -> None:
    watched = CopyOnWrite()
    with watched.watch():
        x, other = torch.zeros(4), torch.zeros(4)
        saved, saved_view, saved_other = (watched.save(t) for t in (x, x[1:], other))
        x[2:].add_(1)
        x.mul_(3)
        torch.add(x, 1, out=x)
    assert watched.copies == 2
    assert not saved.tensor.any() and not saved_view.tensor.any()
    assert saved_other.tensor.data_ptr() == other.data_ptr()
    assert x.tolist() == [1, 1, 4, 4]


def test_what_is_no_longer_saved_is_not_copied() -> None:
    watched = CopyOnWrite()
    with watched.watch():
        x = torch.zeros(4)
        watched.save(x)
        x.add_(1)
    assert watched.copies == 0
