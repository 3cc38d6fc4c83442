"""Training in half precision: gradients that fp16 could not hold, overflows, and a resume that keeps the scale."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.unit.toy import ToyDenoiser, make_config, make_encoded
from trainer.adapter.inject import make_adapter
from trainer.config import AdapterConfig, ObjectiveConfig, TrainConfig
from trainer.denoiser import Conditioning
from trainer.loop.guards import GuardState
from trainer.loop.loss_scale import GROWTH_INTERVAL, LARGEST, loss_scale, overflowed
from trainer.loop.objective import loss_per_item
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.runs.checkpoint import read_state
from trainer.runs.checkpoint_list import find_checkpoints


class HalfDenoiser(ToyDenoiser):
    """The toy in half precision, its activations times `loudness`: a factor that makes scaled gradients overflow."""

    def __init__(self, dtype: torch.dtype, loudness: float = 1.0) -> None:
        super().__init__()
        self.dtype, self.loudness = dtype, loudness
        with torch.inference_mode():
            self.network.to(dtype)

    def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        text = conditioning["cross_attn"].to(self.dtype)
        output = self.module(noisy.to(self.dtype), timestep.to(self.dtype), text)
        return (output * self.loudness).float()


def run(
    folder: Path,
    dtype: torch.dtype,
    config: TrainConfig | None = None,
    loudness: float = 1.0,
    **options: object,
) -> TrainResult:
    encoded = make_encoded(folder, 4)
    return train(
        HalfDenoiser(dtype, loudness),
        encoded,
        config or make_config(steps=40, learning_rate=3e-3),
        run_folder=folder / "run",
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_like_single(dtype: torch.dtype, tmp_path: Path) -> None:
    exact = run(tmp_path / "single", torch.float32)
    half = run(tmp_path / "half", dtype)
    assert half.step == 40 and half.losses == pytest.approx(exact.losses, rel=0.05)
    names = [n for n in exact.adapter if "lora_B" in n]
    there = torch.cat([exact.adapter[n].flatten() for n in names])
    here = torch.cat([half.adapter[n].flatten() for n in names])
    assert float((here - there).norm() / there.norm()) < 0.1


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x


def gradients(dtype: torch.dtype, scale: float, tokens: int = 8192) -> Tensor:
    """Of the adapters of four residual blocks, for a loss of about 0.09 over tokens * 64 values."""
    torch.manual_seed(0)
    network = nn.ModuleDict(
        {"blocks": nn.ModuleList(_Block(32) for _ in range(4)), "head": nn.Linear(32, 64)}
    )
    network.requires_grad_(False)
    x = torch.randn(tokens, 32)
    adapter = make_adapter(network, AdapterConfig(rank=4, alpha=4, dropout=0.0), 0)
    draws = torch.Generator().manual_seed(1)
    state = adapter.state_dict().items()
    adapter.load_state_dict({k: 0.02 * torch.randn(v.shape, generator=draws) for k, v in state})
    for module in network.modules():
        for name, p in list(module._parameters.items()):
            if p is not None and not p.requires_grad:
                module._parameters[name] = nn.Parameter(p.to(dtype), False)
    hidden = x.to(dtype)
    for block in network["blocks"]:
        hidden = block(hidden)
    prediction = network["head"](hidden).float().T.reshape(1, 64, -1)
    noise = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(2))
    loss = loss_per_item(prediction, prediction.detach() + 0.3 * noise, None, ObjectiveConfig()).sum()
    (loss * scale).backward()
    return torch.cat([p.grad.flatten() / scale for p in adapter.parameters()]).double()


def test_scaled_gradients_are_those_of_single_precision() -> None:
    exact = gradients(torch.float32, 1.0)

    def error(scale: float) -> float:
        return float((gradients(torch.float16, scale) - exact).norm() / exact.norm())

    start = loss_scale(GuardState(), torch.float16)
    assert error(start) < 0.005
    assert error(1.0) > 10 * error(start), "what the scale is for"


def test_an_overflow_computes_the_same_step_again_at_half_the_scale(tmp_path: Path) -> None:
    """The toy's gradients overflow at the first scale; no step is lost and the result is that of a scale that fits."""
    config = make_config(steps=6, learning_rate=1e-3)
    loud = run(tmp_path / "loud", torch.float16, config, loudness=8.0)
    state = read_state(find_checkpoints(tmp_path / "loud" / "run")[-1])
    guard = GuardState(**state.guard)
    assert guard.overflows >= 1 and guard.loss_scale == 2.0**16 / 2**guard.overflows
    assert guard.skipped == 0 and loud.step == 6
    assert loud.losses == pytest.approx(run(tmp_path / "exact", torch.float32, config, 8.0).losses, rel=0.05)


def test_a_resumed_run_keeps_the_scale(tmp_path: Path) -> None:
    config = make_config(steps=8, learning_rate=1e-3)
    config = TrainConfig.from_dict({**config.to_dict(), "checkpoint_every": 3})
    whole = run(tmp_path / "whole", torch.float16, config, loudness=8.0)
    first = tmp_path / "whole" / "run" / "step-00000006"
    state = read_state(first)
    assert state.guard["overflows"] >= 1
    again = run(tmp_path / "again", torch.float16, config, loudness=8.0, resume_from=first)
    assert again.losses == whole.losses
    assert all(torch.equal(again.adapter[k], t) for k, t in whole.adapter.items())


def test_fused_updates_undo_the_scale(tmp_path: Path) -> None:
    plain = make_config(steps=4, max_grad_norm=0.0)
    fused = make_config(steps=4, max_grad_norm=0.0, update_in_backward=True)
    a = run(tmp_path / "plain", torch.float16, plain).adapter
    b = run(tmp_path / "fused", torch.float16, fused).adapter
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_the_scale_grows_again_and_has_bounds() -> None:
    guard = GuardState(loss_scale=2.0)
    assert not overflowed(guard, float("nan"), float("nan")), (
        "a loss that is not finite is not the scale's fault"
    )
    assert overflowed(guard, 1.0, float("inf")) and guard.loss_scale == 1.0
    assert not overflowed(guard, 1.0, float("inf")), "nothing left to halve: the step is skipped as any other"
    for _ in range(GROWTH_INTERVAL):
        assert not overflowed(guard, 1.0, 1.0)
    assert guard.loss_scale == 2.0
    guard.loss_scale, guard.steps_since_overflow = LARGEST, GROWTH_INTERVAL - 1
    assert not overflowed(guard, 1.0, 1.0) and guard.loss_scale == LARGEST


def test_checkpoints_of_before_have_the_first_scale() -> None:
    old = {
        k: v
        for k, v in asdict(GuardState()).items()
        if k not in ("loss_scale", "steps_since_overflow", "overflows")
    }
    assert loss_scale(GuardState.from_dict(old), torch.float16) == 2.0**16
    assert loss_scale(GuardState.from_dict(old), torch.bfloat16) == 1.0
