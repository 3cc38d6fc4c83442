"""A base in fp8 or nf4."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.adapter.frozen_weights import resident_weights
from trainer.adapter.inject import make_adapter
from trainer.config import AdapterConfig, MemoryConfig
from trainer.errors import KilnError
from trainer.events import Controls, Event, StepEvent
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.memory import quantised_base
from trainer.memory.ledger import size_of
from trainer.memory.placement import Placement
from trainer.memory.quantised_base import from_fp8, to_fp8
from trainer.memory.shared_clone import SharedClone

from ..toy import CHANNELS, TEXT, ToyDenoiser, make_config, make_encoded

WIDTH, DEPTH = 32, 5


LEVELS = ("resident", "checkpoint activations", "stream blocks", "stream from file")


class Block(nn.Module):
    """Norm with weights, a bare parameter, attention and a gated prefetcher-forward, as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.modulation = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.ffn = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, *, extra: Tensor) -> Tensor:
        y = self.norm(x) * (1 + self.modulation) + extra
        x = x + self.o(nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        return x + self.ffn(self.norm(x))


class Network(nn.Module):
    patch_size = (1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.begin, self.text, self.end = (
            nn.Linear(i, o) for i, o in ((CHANNELS, WIDTH), (TEXT, WIDTH), (WIDTH, CHANNELS))
        )
        self.register_buffer("offset", torch.ones(WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        hidden = self.begin(x.movedim(1, -1))
        shape = hidden.shape
        extra = self.text(text.mean(1, keepdim=True)) + torch.sin(timestep / 200)[:, None, None] + self.offset
        hidden = hidden.flatten(1, -2)
        for block in self.blocks:
            hidden = block(hidden, extra=extra)
        return self.end(hidden).view(shape[:-1] + (CHANNELS,)).movedim(-1, 1)


class BlockDenoiser(ToyDenoiser):
    """ToyDenoiser with real blocks."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(5)
        with torch.inference_mode():
            self.network: Any = Network().to(dtype)
        self.clone = SharedClone(self.network)

    def file(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"model.diffusion_model.{k}": v.clone() for k, v in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"


def run(
    folder: Path,
    level: str,
    *,
    steps: int = 5,
    stop_after: int = 0,
    resume: Path | None = None,
    base_precision: str = "as it is",
    offload: bool = False,
    **adapter: Any,
) -> TrainResult:
    denoiser, controls = BlockDenoiser(), Controls()
    memory = MemoryConfig(level=level, base_precision=base_precision, offload_block_inputs=offload)

    def listen(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == stop_after:
            controls.stop()

    return train(
        denoiser,
        make_encoded(folder, shapes=((CHANNELS, 1, 3, 2),)),
        dataclasses.replace(
            make_config(steps=steps), adapter=AdapterConfig(rank=4, alpha=4.0, **adapter), memory=memory
        ),
        run_folder=folder / "run",
        controls=controls,
        emit=listen,
        resume_from=resume,
        model_file=denoiser.file(folder),
    )


def assert_same(a: TrainResult, b: TrainResult) -> None:
    assert a.losses == b.losses
    assert a.adapter.keys() == b.adapter.keys()
    assert all(torch.equal(a.adapter[k], b.adapter[k]) for k in a.adapter)


@pytest.mark.parametrize(("precision", "error"), [("fp8", 0.02), ("nf4", 0.05)])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])
def test_every_level_learns_the_same_on_a_quantised_base(
    tmp_path: Path, precision: str, error: float, kind: str
) -> None:
    expected = run(tmp_path / "resident", "resident", base_precision=precision, kind=kind)
    for level in LEVELS[1:3]:
        assert_same(run(tmp_path / level, level, base_precision=precision, kind=kind), expected)
    exact = run(tmp_path / "exact", "resident", kind=kind)
    assert exact.losses != expected.losses
    torch.testing.assert_close(exact.losses, expected.losses, rtol=error, atol=0.0)


@pytest.mark.parametrize("precision", ["fp8", "nf4"])
@pytest.mark.parametrize("level", LEVELS[:3])
def test_a_base_is_quantised_once_a_run(
    tmp_path: Path, precision: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the run leaves the device for another node, and the weights are the same then."""
    made: list[int] = []
    form = quantised_base._FORMATS[precision]
    monkeypatch.setitem(quantised_base._FORMATS, precision, lambda w: made.append(len(w)) or form(w))
    denoiser, placement = place(MemoryConfig(level=level, base_precision=precision), tmp_path)
    like = torch.empty(0)
    seen = []
    for _ in range(3):
        with placement.session():
            layer = denoiser.module.blocks[1].q
            with placement.weights(layer, like) as (weight, bias):
                seen.append((weight.clone(), bias.clone()))
    assert len(made) == 6 * DEPTH
    assert all(torch.equal(a, b) for pair in seen[1:] for a, b in zip(pair, seen[0], strict=True))


def test_nf4_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(quantised_base.importlib, "import_module", absent)
    with pytest.raises(KilnError, match=r"nf4 needs the Python package bitsandbytes .* or choose fp8"):
        quantised_base.QuantisedBase("nf4", resident_weights)


@pytest.mark.parametrize(("precision", "error"), [("fp8", 0.027), ("nf4", 0.096)])
def test_the_error_of_a_quantised_weight(precision: str, error: float) -> None:
    """Of a normally distributed matrix, as the docs state it; and the bytes that it takes."""
    torch.manual_seed(0)
    layer = nn.Linear(512, 512)
    nn.init.normal_(layer.weight)
    exact = layer.weight.detach().clone()
    base = quantised_base.QuantisedBase(precision, resident_weights)
    assert base.hold(layer, torch.empty(0), torch.device("cpu"))
    held = size_of(layer.weight)
    assert held <= quantised_base.quantised_bytes(exact, precision) <= held * 1.04
    form: Any = layer.__dict__["kiln_quantised"].format
    scales = form._scale if precision == "fp8" else form._scales.absmax
    assert quantised_base.scale_bytes(exact, precision) == size_of(scales)
    with base.weights(layer, torch.empty(0)) as (weight, _):
        assert 0.8 * error < float((weight - exact).norm() / exact.norm()) < error


def place(config: MemoryConfig, folder: Path, **options: Any) -> tuple[BlockDenoiser, Placement]:
    denoiser = BlockDenoiser(**options)
    return denoiser, Placement(
        denoiser, config, AdapterConfig(rank=4, alpha=4.0), resident_weights, denoiser.file(folder)
    )


def test_fp8_rounds_each_row_by_itself() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 128) * torch.logspace(-6, 0, 64)[:, None]  # rows of very different sizes
    held, scale = to_fp8(weight)
    assert held.dtype == torch.float8_e4m3fn and scale.shape == (64, 1)
    again = from_fp8(held, scale, weight)
    assert (again - weight).abs().max() <= weight.abs().max() / 16
    by_row = (again - weight).norm(dim=1) / weight.norm(dim=1)
    assert by_row.max() < 0.04, "3 bits of mantissa: steps of a sixteenth, whatever the size of the row"
    zero, scale = to_fp8(torch.zeros(2, 3))
    assert torch.equal(from_fp8(zero, scale, weight), torch.zeros(2, 3))


@pytest.mark.parametrize("precision", ["fp8", "nf4"])
def test_gradients_on_a_quantised_base_are_those_of_the_rounded_weights(
    tmp_path: Path, precision: str
) -> None:
    """Against the same network with the rounded values as its own weights, nf4 as bitsandbytes itself rounds."""
    denoiser, placement = place(MemoryConfig(level="stream blocks", base_precision=precision), tmp_path)

    def round_trip(weight: Tensor) -> Tensor:
        if precision == "fp8":
            return from_fp8(*to_fp8(weight), like=weight)
        return dequantize_4bit(
            *quantize_4bit(weight.clone(), quant_type="nf4", blocksize=64, compress_statistics=True)
        )

    rounded = BlockDenoiser()
    with torch.inference_mode():
        for block in rounded.network.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.copy_(round_trip(layer.weight))
    x, text = torch.randn(2, CHANNELS, 1, 3, 2), torch.randn(2, 3, TEXT)
    found = []
    for one, session, weights in (
        (denoiser, placement.session, placement.weights),
        (rounded, rounded.session, resident_weights),
    ):
        with session():
            adapter = make_adapter(one.module, AdapterConfig(rank=4, alpha=4.0, dropout=0.0), 3, weights)
            state = adapter.state_dict()
            draws = torch.Generator().manual_seed(1)
            adapter.load_state_dict(
                {k: torch.randn(v.shape, generator=draws) * 0.1 for k, v in state.items()}
            )
            one.forward(x, torch.full((2,), 500.0), {"cross_attn": text}).square().mean().backward()
            found.append([p.grad for p in adapter.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
