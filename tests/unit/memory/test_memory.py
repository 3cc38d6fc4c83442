"""Memory levels: the same training at each of them, with no more weights on the device than the level promises."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.adapter.frozen_weights import resident_weights
from trainer.adapter.inject import make_adapter
from trainer.config import AdapterConfig, MemoryConfig, TrainConfig
from trainer.errors import KilnError
from trainer.events import Controls, Event, StepEvent
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.memory.ledger import size_of
from trainer.memory.mapped import map_weights
from trainer.memory.placement import Placement
from trainer.memory.shared_clone import SharedClone
from trainer.runs.checkpoint_list import find_checkpoints
from trainer.runs.job import Job

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


@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.2}, {"kind": "dora"}, {"init": "pissa"}, {"kind": "loha"}]
)
def test_every_level_learns_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    expected = run(tmp_path / "resident", "resident", **options)
    assert expected.losses[-1] != expected.losses[0]
    for level in LEVELS[1:]:
        for offload in (False, True):
            found = run(tmp_path / f"{level} {offload}", level, offload=offload, **options)
            assert_same(found, expected)


def test_a_run_goes_on_at_another_level(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole", "resident", steps=6)
    for before, after in zip(LEVELS, LEVELS[1:] + LEVELS[:1], strict=True):
        folder = tmp_path / f"{before} {after}"
        assert run(folder, before, steps=6, stop_after=3).step == 3
        checkpoint = find_checkpoints(folder / "run")[-1]
        assert_same(run(folder, after, steps=6, resume=checkpoint), expected)


def place(config: MemoryConfig, folder: Path, **options: Any) -> tuple[BlockDenoiser, Placement]:
    denoiser = BlockDenoiser(**options)
    return denoiser, Placement(
        denoiser, config, AdapterConfig(rank=4, alpha=4.0), resident_weights, denoiser.file(folder)
    )


def bytes_of(modules: Any) -> int:
    return sum(size_of(p) for m in modules for p in m.parameters())


@pytest.mark.parametrize("level", LEVELS[2:])
def test_streaming_holds_two_blocks_and_what_is_outside(level: str, tmp_path: Path) -> None:
    denoiser, placement = place(MemoryConfig(level=level), tmp_path)
    blocks = denoiser.network.blocks
    outside = bytes_of([denoiser.network]) - bytes_of(blocks) + size_of(denoiser.network.offset)
    slot = placement_slot(blocks[0])
    x = torch.randn(2, CHANNELS, 1, 3, 2, requires_grad=True)
    for _ in range(2):
        with placement.session():
            answer = denoiser.forward(x, torch.rand(2) * 1000, {"cross_attn": torch.randn(2, 3, TEXT)})
            answer.sum().backward()
        assert placement.ledger.total == 0
    assert placement.ledger.peak == 2 * slot + outside < bytes_of([denoiser.network])
    assert slot < bytes_of(blocks[:1]) + 14 * 256, "a slot is a block, up to alignment"


def placement_slot(block: nn.Module) -> int:
    return sum(-(-size_of(p) // 256) * 256 for p in block.parameters())


def test_blocks_are_brought_in_once_per_pass_and_in_order(tmp_path: Path) -> None:
    """0 1 2 3 4 forward, then 2 1 0 backward: 4 and 3 are still there. The next step finds 0 and 1."""
    denoiser, placement = place(MemoryConfig(level="stream blocks"), tmp_path)
    x = torch.randn(2, CHANNELS, 1, 3, 2, requires_grad=True)
    with placement.session():
        assert placement.ring is not None
        asked: list[int] = []
        slots = placement.ring._slots
        for slot in slots:
            begin = slot.begin
            slot.begin = lambda i, *a, begin=begin: (asked.append(i), begin(i, *a))[1]  # type: ignore[method-assign]
        for expected in ([0, 1, 2, 3, 4, 2, 1, 0], [2, 3, 4, 2, 1, 0]):
            asked.clear()
            denoiser.forward(x, torch.rand(2), {"cross_attn": torch.randn(2, 3, TEXT)}).sum().backward()
            assert asked == expected


def test_blocks_out_of_order_are_right_all_the_same(tmp_path: Path) -> None:
    """Layers skipped by a node, or a block used twice: slower, never wrong."""
    denoiser, placement = place(MemoryConfig(level="stream blocks"), tmp_path)
    order = [3, 0, 0, 4, 1, 3]
    x = torch.randn(2, 6, WIDTH)
    extra = torch.zeros(2, 1, WIDTH)

    def gradient(module: nn.Module) -> Tensor:
        start = x.clone().requires_grad_()
        y = start
        for index in order:
            y = module.blocks[index](y, extra=extra)  # type: ignore[index,union-attr]
        y.square().sum().backward()
        assert start.grad is not None
        return start.grad

    with denoiser.session():
        expected = gradient(denoiser.module)
    with placement.session():
        assert torch.equal(gradient(denoiser.module), expected)


def test_the_model_keeps_its_own_weights(tmp_path: Path) -> None:
    for memory in (
        MemoryConfig(level="stream blocks"),
        MemoryConfig(level="resident", base_precision="fp8"),
    ):
        denoiser, placement = place(memory, tmp_path)
        before = {k: (v.data_ptr(), v.clone()) for k, v in denoiser.network.state_dict().items()}
        with placement.session():
            make_adapter(denoiser.module, AdapterConfig(rank=4, alpha=4.0), 0, placement.weights)
            denoiser.forward(
                torch.randn(1, CHANNELS, 1, 3, 2), torch.rand(1), {"cross_attn": torch.randn(1, 3, TEXT)}
            )
        for key, value in denoiser.network.state_dict().items():
            assert value.data_ptr() == before[key][0] and torch.equal(value, before[key][1])
        assert not [n for n, p in denoiser.module.named_parameters() if "lora" not in n], (
            "the clone holds memory"
        )


def test_nothing_of_a_run_stays_in_memory(tmp_path: Path) -> None:
    def left() -> int:
        return sum(issubclass(type(each), nn.Module) for each in gc.get_objects())

    gc.collect()
    before = left()
    gc.disable()  # what is freed is freed by the run's end
    try:
        job = Job(lambda controls: run(tmp_path, "checkpoint activations", steps=1))
        job.start()
        job.wait()
        assert job.result().step == 1 and left() == before
    finally:
        gc.enable()


def test_a_failed_copy_is_raised_where_the_block_is_needed(tmp_path: Path) -> None:
    denoiser, placement = place(MemoryConfig(level="stream blocks"), tmp_path)
    with placement.session():
        assert placement.ring is not None
        placement.ring._blocks[2][0] = dataclasses.replace(
            placement.ring._blocks[2][0], stored=torch.zeros(3, device="meta")
        )
        with pytest.raises(Exception, match="meta"):
            denoiser.forward(
                torch.randn(1, CHANNELS, 1, 3, 2), torch.rand(1), {"cross_attn": torch.randn(1, 3, TEXT)}
            )


def test_files_that_cannot_be_streamed(tmp_path: Path) -> None:
    denoiser = BlockDenoiser()
    file = denoiser.file(tmp_path)
    own = {"text.weight": denoiser.network.text.weight.detach()}
    assert torch.equal(map_weights(file, own)["text.weight"], own["text.weight"])
    with pytest.raises(KilnError, match=r"holds no nothing\.weight; choose stream blocks"):
        map_weights(file, {"nothing.weight": own["text.weight"]})
    in_half = {"text.weight": own["text.weight"].half()}  # the host may load in another precision
    assert torch.equal(map_weights(file, in_half)["text.weight"], own["text.weight"])
    for changed in (own["text.weight"] * 1.01, own["text.weight"][1:]):
        with pytest.raises(KilnError, match="is not the model's, which was changed after loading"):
            map_weights(file, {"text.weight": changed})
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(KilnError, match=r"model\.safetensors cannot be streamed"):
        map_weights(file, own)
    with pytest.raises(KilnError, match="does not come straight from one safetensors file"):
        Placement(denoiser, MemoryConfig(level="stream from file"), AdapterConfig(), resident_weights)
    for precision in ("fp8", "nf4"):
        with pytest.raises(KilnError, match=f"{precision} does not go with stream from file"):
            MemoryConfig(level="stream from file", base_precision=precision)


def test_settings_survive_the_run_file() -> None:
    config = TrainConfig(memory=MemoryConfig(level="stream blocks", offload_block_inputs=True))
    assert TrainConfig.from_dict(config.to_dict()) == config
    old = config.to_dict()
    del old["memory"]  # of a run from before there were levels
    assert TrainConfig.from_dict(old).memory == MemoryConfig()
