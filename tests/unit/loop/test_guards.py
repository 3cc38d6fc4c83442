"""A step that goes wrong: skipped, rolled back, clipped, or tried again with less memory."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.config import GuardConfig, TrainConfig
from trainer.errors import KilnError
from trainer.events import Event, MessageEvent
from trainer.loop.guards import GuardState, optimizer_step, spike_limit, with_less_memory
from trainer.loop.prefetch import Prefetcher
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.memory import streams
from trainer.memory.out_of_memory import free_memory, is_out_of_memory
from trainer.memory.recompute import checkpoint_blocks
from trainer.runs.checkpoint import read_state
from trainer.runs.checkpoint_list import find_checkpoints

from ..toy import ToyDenoiser, make_config, make_encoded
from . import little_memory_run


class Misbehaving(ToyDenoiser):
    """Calls `act(number, answer)` on every forward pass with gradients."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act, self.calls = act, 0

    def forward(self, noisy: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return self.act(self.calls, noisy, super().forward(noisy, *args, **kwargs))


def bad_at(*numbers: int) -> Any:
    return lambda call, noisy, answer: answer * (float("nan") if call in numbers else 1.0)


def guarded(config: TrainConfig, **options: Any) -> TrainConfig:
    return dataclasses.replace(config, guards=GuardConfig(**options))


def run(folder: Path, denoiser: ToyDenoiser, config: TrainConfig) -> tuple[TrainResult, list[str]]:
    seen: list[Event] = []
    result = train(denoiser, make_encoded(folder), config, run_folder=folder / "run", emit=seen.append)
    return result, [e.text for e in seen if isinstance(e, MessageEvent)]


def test_a_bad_step_is_skipped_and_counted(tmp_path: Path) -> None:
    result, said = run(tmp_path, Misbehaving(bad_at(3)), make_config())
    assert [math.isnan(x) for x in result.losses] == [False, False, True, False, False, False]
    assert said == ["The loss became nan and its gradient nan at step 3: the step was skipped."]
    assert all(t.isfinite().all() for t in result.adapter.values())
    assert result.advice == [
        "Diverging: 1 of 6 steps had no finite loss or gradient. Lower learning_rate (now 0.01)."
    ]
    assert read_state(find_checkpoints(tmp_path / "run")[-1]).guard["skipped"] == 1


def test_too_many_stop_when_so_set(tmp_path: Path) -> None:
    config = guarded(make_config(), max_bad_steps=1, on_divergence="stop")
    with pytest.raises(
        KilnError, match=r"at step 4, the last of 2 such steps in a row; lower the learning rate"
    ):
        run(tmp_path, Misbehaving(bad_at(3, 4)), config)
    assert [p.name for p in find_checkpoints(tmp_path / "run")] == ["step-00000004"]


def test_roll_back_to_the_start_halves_the_rate(tmp_path: Path) -> None:
    config = guarded(make_config(schedule="constant", warmup_ratio=0.0), max_bad_steps=0)
    result, said = run(tmp_path, Misbehaving(bad_at(3)), config)
    assert "back at step 0, with 0.5 of the learning rate" in said[-1]
    halved = make_config(schedule="constant", warmup_ratio=0.0, learning_rate=0.005)
    alone, _ = run(tmp_path / "alone", ToyDenoiser(), halved)
    assert result.losses == alone.losses
    assert all(torch.equal(result.adapter[k], alone.adapter[k]) for k in alone.adapter)


def test_roll_backs_end(tmp_path: Path) -> None:
    config = guarded(make_config(), max_bad_steps=0, max_rollbacks=2)
    with pytest.raises(KilnError, match="after 2 roll-backs, each to half the learning rate"):
        run(tmp_path, Misbehaving(lambda call, noisy, answer: answer * float("inf")), config)


def test_a_run_without_one_good_step_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="None of the 2 steps had a finite loss"):
        run(tmp_path, Misbehaving(bad_at(1, 2)), make_config(steps=2))


def test_spike_limit_is_the_median_of_the_recent() -> None:
    config = GuardConfig(spike_factor=5.0)
    assert spike_limit([1.0] * 9, config) == math.inf
    assert spike_limit([1.0, math.nan, 2.0, 3.0] * 5, config) == 10.0
    assert spike_limit([1.0] * 90, GuardConfig()) == math.inf


def test_a_spike_pulls_no_harder_than_the_limit(tmp_path: Path) -> None:
    """An unclipped spike moves plain gradient descent far; a clipped one does not."""

    def spike(call: int, noisy: Tensor, answer: Tensor) -> Tensor:
        return answer * 100 if call == 15 else answer

    config = make_config(steps=16, schedule="constant", max_grad_norm=0.0)
    free, _ = run(tmp_path / "a", Misbehaving(spike), config)
    held, _ = run(tmp_path / "b", Misbehaving(spike), guarded(config, spike_factor=3.0))
    assert read_state(find_checkpoints(tmp_path / "b" / "run")[-1]).guard["clipped_spikes"] == 1
    assert free.losses[:15] == held.losses[:15]
    assert held.losses[14] > 100 * held.losses[13] and free.losses[15] != held.losses[15]


def out_of_memory_above(size: int) -> Any:
    def act(call: int, noisy: Tensor, answer: Tensor) -> Tensor:
        if len(noisy) > size:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return answer

    return act


def test_out_of_memory_goes_on_in_parts_with_the_same_result(tmp_path: Path) -> None:
    config = make_config(batch_size=4)
    result, said = run(tmp_path, Misbehaving(out_of_memory_above(1)), config)
    assert [t.split("; ")[1] for t in said] == [
        "going on with activation checkpointing.",
        "going on with each batch in 2 parts, the effective batch is the same.",
        "going on with each batch in 4 parts, the effective batch is the same.",
    ]
    alone, _ = run(tmp_path / "alone", ToyDenoiser(), config)
    torch.testing.assert_close(result.losses, alone.losses, rtol=1e-6, atol=1e-6)
    guard = read_state(find_checkpoints(tmp_path / "run")[-1]).guard
    assert guard["parts"] == 4 and guard["activation_checkpointing"]


def test_out_of_memory_for_one_item_is_the_end(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match=r"does not suffice for one item \(tried to allocate 20 GiB\)"):
        run(tmp_path, Misbehaving(out_of_memory_above(0)), make_config())
    off = guarded(make_config(), retry_out_of_memory=False)
    _, denoiser = None, Misbehaving(out_of_memory_above(0))
    with pytest.raises(KilnError, match="does not suffice"):
        run(tmp_path / "off", denoiser, off)
    assert denoiser.calls == 1


def test_the_processor_s_own_memory_runs_out(tmp_path: Path) -> None:
    """A real one: a process that may not take what eight items need at once. torch has no class for it on the CPU.

    220 MB: it was in pieces from 120 (below, one item did not fit) to 250, and fitted at 300 with checkpointing.
    """
    folder = tmp_path / "little"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(Path(little_memory_run.__file__)), str(folder), "220"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # address space is what is limited
    )
    assert done.returncode == 0, done.stderr[-2000:]
    little = json.loads(done.stdout.splitlines()[-1])
    whole = little_memory_run.run(tmp_path)
    assert whole["said"] == []
    assert "can't allocate memory" in little["said"][0] and "parts" in little["said"][-1]
    torch.testing.assert_close(little["losses"], whole["losses"], rtol=1e-6, atol=1e-6)


def test_other_errors_are_no_lack_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match"))
    for words in (
        *("VRAM grow failed: 734003200 bytes", "CUDA error: out of memory", "HIP out of memory"),
        *("CUDA out of memory. Tried to allocate 2 GiB", "MPS backend out of memory (x)"),
        *("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED when calling"),
    ):
        assert is_out_of_memory(RuntimeError(words)), words
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: not enough memory"))
    calls = []

    def work() -> float:
        calls.append(1)
        raise RuntimeError("not implemented for 'Half'")

    with pytest.raises(RuntimeError, match="not implemented"):
        with_less_memory(
            work, GuardState(), GuardConfig(), largest_batch=4, clean_up=lambda: None, warn=lambda text: None
        )
    assert len(calls) == 1


def test_guard_state_round_trip() -> None:
    state = GuardState(skipped=3, rate=0.25, parts=2)
    assert GuardState.from_dict(dataclasses.asdict(state)) == state


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    class Block(nn.Module):
        runs = 0

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([nn.Linear(3, 3)])

        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            Block.runs += 1
            return torch.tanh(self.inner[0](x)) * scale

    torch.manual_seed(0)
    network = nn.Module()
    network.blocks = nn.ModuleList(Block() for _ in range(3))  # type: ignore[assignment]
    x = torch.randn(4, 3)

    def gradients() -> list[Tensor]:
        network.zero_grad()
        y = x
        for block in network.blocks:  # type: ignore[union-attr]
            y = block(y, scale=2.0)
        y.square().sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    plain, Block.runs = gradients(), 0
    assert checkpoint_blocks(network) == checkpoint_blocks(network) and len(checkpoint_blocks(network)) == 3
    again = gradients()
    assert Block.runs == 6 and len(plain) == len(again) == 6
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_the_optimizer_s_first_step_is_tried_again_where_nothing_has_changed() -> None:
    value = torch.zeros(3)
    tries: list[int] = []

    def step() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("CUDA error: out of memory")
        value.add_(1)

    optimizer_step(step, [value])
    assert len(tries) == 2 and value.sum() == 3

    def half_done() -> None:
        value.add_(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(
        KilnError, match=r"does not suffice for the optimizer .*; choose adafactor or adamw_8bit"
    ):
        optimizer_step(half_done, [value])
    assert value.sum() == 6, "done once, not twice"


def test_a_batch_that_cannot_be_prefetched_is_made_by_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = make_encoded(tmp_path, 4)
    whole = train(ToyDenoiser(), encoded, make_config(), run_folder=tmp_path / "whole")

    def full(self: Prefetcher, step: int, parts: int) -> None:
        raise RuntimeError("VRAM grow failed: 734003200 bytes")

    monkeypatch.setattr(Prefetcher, "prefetch", full)
    again = train(ToyDenoiser(), encoded, make_config(), run_folder=tmp_path / "again")
    assert again.losses == whole.losses


def test_memory_is_given_back_on_every_kind_of_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not NVIDIA's alone; and pinned memory, which torch keeps too."""
    called = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(streams.Streams, "free_pinned", lambda self: called.append(f"pinned {self.device}"))
    for kind in ("cuda", "xpu", "mps"):
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check=False, kind=kind: torch.device(kind)
        )
        monkeypatch.setattr(getattr(torch, kind), "empty_cache", lambda kind=kind: called.append(kind))
        free_memory()
    assert called == ["cuda", "pinned cuda", "xpu", "pinned xpu", "mps"]
