"""Compiled blocks: the same run, and settings that do not go together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from trainer.config import AdapterConfig, MemoryConfig, TrainConfig
from trainer.errors import KilnError
from trainer.events import Event, MessageEvent
from trainer.loop.train import train
from trainer.memory import placement
from trainer.memory.compiled import compile_blocks

from ..toy import ToyDenoiser, make_config, make_encoded


def test_a_run_learns_the_same_and_says_what_the_first_step_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "compile_blocks", lambda m: compile_blocks(m, backend="aot_eager"))
    encoded = make_encoded(tmp_path)
    plain = make_config(steps=3)
    compiled = dataclasses.replace(plain, memory=MemoryConfig(compile_blocks=True))
    said: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, MessageEvent):
            said.append(event.text)

    expected = train(ToyDenoiser(), encoded, plain, run_folder=tmp_path / "plain")
    result = train(ToyDenoiser(), encoded, compiled, run_folder=tmp_path / "compiled", emit=listen)
    torch.testing.assert_close(result.losses, expected.losses, rtol=1e-4, atol=1e-6)
    assert said[0].startswith("Compiling") and said[1].startswith("Compiled; the first step took")


@pytest.mark.parametrize(
    "adapter",
    [{"dropout": 0.1}, {"kind": "loha"}, {"rank_dropout": 0.1}, {"init": "pissa"}],
)
def test_what_cannot_be_compiled_is_refused(adapter: dict[str, object]) -> None:
    with pytest.raises(KilnError, match="compile_blocks is for the kind lora"):
        TrainConfig(
            adapter=AdapterConfig(**{"dropout": 0.0, **adapter}),  # type: ignore[arg-type]
            memory=MemoryConfig(compile_blocks=True),
        )


def test_streamed_blocks_are_not_compiled() -> None:
    with pytest.raises(KilnError, match="choose resident"):
        MemoryConfig(compile_blocks=True, level="stream blocks")
