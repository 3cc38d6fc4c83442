"""Which modules are blocks, and recomputing them where a network walks through its lists by itself, as UNets do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.adapter.frozen_weights import resident_weights
from trainer.adapter.inject import make_adapter
from trainer.adapter.targets import choose_targets
from trainer.config import AdapterConfig, MemoryConfig, TrainConfig
from trainer.errors import KilnError
from trainer.events import Event, MessageEvent
from trainer.loop.train import train
from trainer.memory.activations import Activations
from trainer.memory.blocks import find_blocks
from trainer.memory.estimate import estimate
from trainer.memory.ledger import size_of
from trainer.memory.placement import Placement
from trainer.memory.recompute import checkpoint_blocks
from trainer.memory.shared_clone import SharedClone

from ..toy import CHANNELS, TEXT, ToyDenoiser, make_config, make_encoded

WIDTH = 16
ADAPTER = AdapterConfig(rank=4, alpha=4.0, dropout=0.0)


class Res(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(4, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1)
        )
        self.emb = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, outside))
        self.second = nn.Sequential(
            nn.GroupNorm(4, outside), nn.SiLU(), nn.Conv2d(outside, outside, 3, padding=1)
        )
        self.skip = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.second(self.first(x) + self.emb(emb)[..., None, None])
        return self.skip(x) + h  # type: ignore[no-any-return]


class Attend(nn.Module):
    """Scales what it attends to by its place, which it reads from the options that all share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(TEXT, width), nn.Linear(TEXT, width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, both: tuple[Tensor, Tensor], options: dict[str, Any]) -> Tensor:
        x, context = both
        y = nn.functional.scaled_dot_product_attention(self.q(self.norm(x)), self.k(context), self.v(context))
        x = x + self.o(y) * (0.5 + options["place"]["stage"] + 0.1 * options["number"])
        return x + self.ff(x)


class Spatial(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.proj_in = nn.Linear(width, width)
        self.chain = nn.ModuleList(Attend(width) for _ in range(depth))

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for number, block in enumerate(self.chain):
            options["number"] = number
            h = block((h, context), options=options)
        return x + h.transpose(1, 2).view_as(x)


class Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # type: ignore[no-any-return]


class Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(nn.functional.interpolate(x, size=size[2:]))  # type: ignore[no-any-return]


class LittleUNet(nn.Module):
    """Two resolutions, a deep stage inside, skip connections; its lists are walked through and never called."""

    def __init__(self) -> None:
        super().__init__()
        w = WIDTH
        self.time_embed = nn.Sequential(nn.Linear(1, w), nn.SiLU(), nn.Linear(w, w))
        self.input_blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(CHANNELS, w, 3, padding=1)),
                nn.Sequential(Res(w, w), Spatial(w, 1)),
                nn.Sequential(Down(w)),
                nn.Sequential(Res(w, 2 * w), Spatial(2 * w, 3)),
            ]
        )
        self.middle_block = nn.Sequential(Res(2 * w, 2 * w), Spatial(2 * w, 3), Res(2 * w, 2 * w))
        self.output_blocks = nn.ModuleList(
            [
                nn.Sequential(Res(4 * w, 2 * w), Spatial(2 * w, 3)),
                nn.Sequential(Res(3 * w, w), Up(w)),
                nn.Sequential(Res(2 * w, w), Spatial(w, 1)),
                nn.Sequential(Res(2 * w, w)),
            ]
        )
        self.out = nn.Conv2d(w, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        emb = self.time_embed(timestep[:, None] / 1000)
        options: dict[str, Any] = {"place": {}}
        saved: list[Tensor] = []

        def stage(layers: nn.Module, h: Tensor, number: int) -> Tensor:
            options["place"]["stage"] = number
            for layer in layers.children():
                if isinstance(layer, Res):
                    h = layer(h, emb)
                elif isinstance(layer, Spatial):
                    h = layer(h, text, options)
                elif isinstance(layer, Up):
                    h = layer(h, size=saved[-1].shape)
                else:
                    h = layer(h)
            return h

        h = x
        for layers in self.input_blocks:
            h = stage(layers, h, 0)
            saved.append(h)
        h = stage(self.middle_block, h, 1)
        for layers in self.output_blocks:
            h = stage(layers, torch.cat([h, saved.pop()], dim=1), 2)
        return self.out(h)  # type: ignore[no-any-return]


class UNetDenoiser(ToyDenoiser):
    """Of pictures: latents (B, C, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        with torch.inference_mode():
            self.network: Any = LittleUNet()
        self.clone = SharedClone(self.network)


def names_of(module: nn.Module) -> list[str]:
    names = {id(m): n for n, m in module.named_modules()}
    return [names[id(b)] for b in find_blocks(module)]


def test_blocks_of_a_unet_are_what_it_calls_in_its_order() -> None:
    network = LittleUNet()
    called: list[nn.Module] = []
    for block in find_blocks(network):
        block.register_forward_pre_hook(lambda module, given: called.append(module))
    network(torch.randn(1, CHANNELS, 6, 5), torch.rand(1), torch.randn(1, 3, TEXT))
    assert called == find_blocks(network)
    assert "input_blocks.3.1.chain.0" in names_of(network), "a deep stage is opened"
    assert "input_blocks.1.1" in names_of(network), "a stage of one is a block itself"
    inside = sum(size_of(p) for b in find_blocks(network) for p in b.parameters())
    assert inside > 0.9 * sum(size_of(p) for p in network.parameters())


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)


class Block(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.attn = nn.Linear(8, 8)
        self.experts = nn.ModuleList(Expert() for _ in range(experts))
        self.to_out = nn.ModuleList([nn.Linear(8, 8), nn.Dropout()])


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
        self.inner = nn.ModuleDict({"a": Block(4), "b": Block(2)})
        self.nested = nn.ModuleList([nn.ModuleList([Block(1), nn.Linear(8, 8)]), nn.Identity()])
        self.again = self.inner["a"]


def test_blocks_of_other_networks() -> None:
    """Experts side by side make no chain; nested lists are opened; a block in two places is one."""
    assert names_of(Wrapper()) == ["inner.a", "inner.b", "nested.0.0"]
    assert names_of(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))) == []


class Mixer(nn.Module):
    """Nearly nothing but a list of two layers: with adapters these look like a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))


@pytest.mark.parametrize("kind", ["lora", "loha", "oft"])
def test_adapters_change_no_blocks(kind: str) -> None:
    """They are looked for anew when a run comes back to the device."""
    network = LittleUNet()
    network.mixers = nn.ModuleList(Mixer() for _ in range(2))
    before = names_of(network)
    assert before[-1] == "mixers.1"
    adapter = dataclasses.replace(ADAPTER, kind=kind, rank=8, target_modules=".*")
    make_adapter(network, adapter, 0)
    assert names_of(network) == before


@contextmanager
def counting(kept: dict[int, int]) -> Iterator[None]:
    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        yield


def step(folder: Path, level: str, offload: bool = False) -> tuple[list[Tensor], int, Placement]:
    """Loss and gradients, the bytes kept of the forward, the placement."""
    denoiser = UNetDenoiser()
    save_file({k: v.clone() for k, v in denoiser.network.state_dict().items()}, folder / "unet.safetensors")
    memory = MemoryConfig(level=level, offload_block_inputs=offload)
    placement = Placement(denoiser, memory, ADAPTER, resident_weights, folder / "unet.safetensors")
    draws = torch.Generator().manual_seed(1)
    x, text = (torch.randn(s, generator=draws) for s in ((2, CHANNELS, 10, 7), (2, 3, TEXT)))
    kept: dict[int, int] = {}
    with placement.session():
        adapter = make_adapter(denoiser.module, ADAPTER, 0, placement.weights)
        state = {k: 0.1 * torch.randn(v.shape, generator=draws) for k, v in adapter.state_dict().items()}
        adapter.load_state_dict(state)
        with counting(kept):
            answer = denoiser.forward(x, torch.tensor([100.0, 900.0]), {"cross_attn": text})
        loss = answer.square().mean()
        loss.backward()
        assert placement.uncalled_blocks_warning() == ""
        return [loss.detach(), *(p.grad for p in adapter.parameters())], sum(kept.values()), placement


@pytest.mark.parametrize("level", ["checkpoint activations", "stream blocks", "stream from file"])
@pytest.mark.parametrize("offload", [False, True])
def test_a_unet_learns_the_same_at_every_level(tmp_path: Path, level: str, offload: bool) -> None:
    expected, whole, _ = step(tmp_path, "resident")
    found, kept, placement = step(tmp_path, level, offload)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(found, expected, strict=True))
    assert kept < (0.15 if offload else 0.4) * whole
    if level == "checkpoint activations":
        return
    network = UNetDenoiser().network
    sizes = [sum(-(-size_of(p) // 256) * 256 for p in b.parameters()) for b in find_blocks(network)]
    inside = sum(size_of(p) for b in find_blocks(network) for p in b.parameters())
    outside = sum(size_of(p) for p in network.parameters()) - inside
    assert placement.ledger.peak == 2 * max(sizes) + outside


def test_what_a_unet_keeps_is_planned(tmp_path: Path) -> None:
    _, kept, _ = step(tmp_path, "resident")
    network = LittleUNet()
    shape = (CHANNELS, 10, 7)
    planned = 2 * 4 * Activations(network, choose_targets(network, ""), shape).whole
    assert 0.7 < planned / kept < 1.4, planned / kept


class Collecting(nn.Module):
    """A block whose arguments it changes itself, and which answers by a list that grows from block to block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, streams: list[Tensor], seen: dict[str, list[int]]) -> list[Tensor]:
        seen["numbers"].append(len(seen["numbers"]))
        first = self.a(streams[0]) * len(seen["numbers"])
        return [torch.tanh(first + self.b(streams[1])), streams[0]]


def test_lists_and_dicts_are_seen_again_as_they_were() -> None:
    torch.manual_seed(0)
    network = nn.Module()
    network.blocks = nn.ModuleList(Collecting() for _ in range(3))
    start = torch.randn(2, 4)

    def gradient(prepare: Callable[[], object]) -> Tensor:
        prepare()
        x = start.clone().requires_grad_()
        seen: dict[str, list[int]] = {"numbers": []}
        streams = [x, 2 * x]
        for block in network.blocks:  # type: ignore[union-attr]
            streams = block(streams, seen=seen)
        assert seen["numbers"] == [0, 1, 2]
        (streams[0].sum() + streams[1].square().sum()).backward()
        assert seen["numbers"] == [0, 1, 2], "the second computation does not write into what all share"
        assert x.grad is not None
        return x.grad

    expected = gradient(lambda: None)
    assert torch.equal(gradient(lambda: checkpoint_blocks(network)), expected)


class Flat(nn.Module):
    """No blocks: two layers by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)])

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x.movedim(1, -1)).movedim(-1, 1)
        return x


class Aloof(nn.Module):
    """Blocks that it never calls: it uses their layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Expert() for _ in range(3))
        self.end = nn.ModuleList([nn.Linear(CHANNELS, 8), nn.Linear(8, CHANNELS)])

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        h = self.end[0](x.movedim(1, -1))
        for block in self.blocks:
            h = h + block.down(torch.tanh(block.up(h)))
        return self.end[1](h).movedim(-1, 1)  # type: ignore[no-any-return]


def run(folder: Path, network: nn.Module, memory: MemoryConfig) -> list[str]:
    """What a short run says."""
    denoiser, said = ToyDenoiser(), []
    denoiser.network = network  # type: ignore[assignment]
    denoiser.clone = SharedClone(network)

    def listen(event: Event) -> None:
        if isinstance(event, MessageEvent):
            said.append(event.text)

    config = make_config(steps=2)
    train(
        denoiser,
        make_encoded(folder),
        TrainConfig(
            steps=2,
            batch_size=1,
            adapter=dataclasses.replace(ADAPTER, target_modules=r".*\.\d+"),
            optimizer=config.optimizer,
            memory=memory,
        ),
        run_folder=folder / "run",
        emit=listen,
    )
    return said


def test_a_network_without_blocks_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for memory in (
        MemoryConfig(level="checkpoint activations"),
        MemoryConfig(level="stream blocks"),
        MemoryConfig(compile_blocks=True),
    ):
        with pytest.raises(KilnError, match="has no blocks that could be recomputed, streamed or compiled"):
            run(tmp_path, Flat(), memory)
    assert run(tmp_path, Flat(), MemoryConfig(level="resident")) == []
    network = Flat()
    least = estimate(
        network,
        ["layers.0", "layers.1"],
        TrainConfig(memory=MemoryConfig(level="auto")),
        (CHANNELS, 64, 64),
        bytes_per_value=4,
        trained=1000,
        free=1,
    )
    assert least.memory.level == "resident", "auto chooses no level that does nothing"


def test_blocks_that_are_never_called_are_spoken_of(tmp_path: Path) -> None:
    said = run(tmp_path, Aloof(), MemoryConfig(level="checkpoint activations"))
    assert said == [
        "The memory level checkpoint activations has little effect on this model: 3 of its 3 blocks are never called."
    ]
