"""Exact resume: whatever a step depends on comes back, whatever was cut short is never loaded."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.adapter import targets
from trainer.config import GuardConfig, TrainConfig, ValidationConfig
from trainer.dataset.encoded import EncodedDataset
from trainer.errors import KilnError
from trainer.events import Controls, Event, MessageEvent, StepEvent
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.runs.checkpoint import read_adapter, read_state
from trainer.runs.checkpoint_list import best_checkpoint, find_checkpoints

from ..toy import ToyDenoiser, hold_out, make_config, make_encoded

SHAPES = ((4, 1, 2, 2), (4, 1, 2, 3))


def config_of(**options: Any) -> TrainConfig:
    """Everything on that has a memory: dropout, accumulation, validation, a running mean, few checkpoints."""
    optimizer = {"gradient_accumulation": 2, "ema_decay": 0.9, **options.pop("optimizer", {})}
    made = make_config(steps=24, dropout=0.2, **optimizer)
    values = {"checkpoint_every": 5, "validation": ValidationConfig(every=4), **options}
    return dataclasses.replace(made, **values)


def run(
    folder: Path,
    encoded: EncodedDataset,
    config: TrainConfig,
    stop_at: int | None = None,
    denoiser: ToyDenoiser | None = None,
    **options: Any,
) -> TrainResult:
    controls = Controls()

    def watch(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == stop_at:
            controls.stop()

    return train(
        denoiser or ToyDenoiser(),
        encoded,
        config,
        run_folder=folder,
        controls=controls,
        emit=watch,
        **options,
    )


def assert_same(a: TrainResult, b: TrainResult) -> None:
    torch.testing.assert_close(a.losses, b.losses, rtol=0, atol=0, equal_nan=True)
    assert a.adapter.keys() == b.adapter.keys()
    assert all(torch.equal(a.adapter[k], b.adapter[k]) for k in a.adapter)
    assert a.validation == b.validation and a.advice == b.advice


def items_of(folder: Path) -> dict[str, Any]:
    """What a run's newest checkpoint says of its items."""
    return read_state(find_checkpoints(folder)[-1]).item_losses


OPTIMIZERS = [
    {},
    {"optimizer": "adafactor", "learning_rate": 0.05},
    {"lora_plus_ratio": 4.0},
    {"optimizer": "lion", "learning_rate": 1e-3},
    {"optimizer": "prodigy", "learning_rate": 1.0},
    {"optimizer": "schedule_free_adamw", "schedule": "constant", "ema_decay": 0.0},
    {"optimizer": "AdaBelief"},
    {"optimizer": "adamw_8bit"},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: str(next(iter(o.values()), "adamw")))
def test_resumed_equals_uninterrupted(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    if optimizer.get("optimizer") in ("lion", "prodigy", "schedule_free_adamw", "AdaBelief"):
        pytest.importorskip("pytorch_optimizer")
    if optimizer.get("optimizer") == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    encoded = hold_out(make_encoded(tmp_path, count=7, shapes=SHAPES), 2)
    config = config_of(optimizer=optimizer)
    whole = run(tmp_path / "whole", encoded, config)
    part = run(tmp_path / "part", encoded, config, stop_at=11)
    assert part.stopped and part.step == 11
    saved = find_checkpoints(tmp_path / "part")[-1]
    assert_same(run(tmp_path / "part", encoded, config, resume_from=saved), whole)
    assert items_of(tmp_path / "part") == items_of(tmp_path / "whole")
    assert sum(items_of(tmp_path / "whole")["near"]) == pytest.approx(48 / 3 * 5), "every draw of every batch"
    assert len({p.loss for p in whole.validation}) > 3


def test_resumed_from_every_checkpoint(tmp_path: Path) -> None:
    """Each from a fresh copy of what a kill at that moment would have left."""
    encoded = hold_out(make_encoded(tmp_path, count=6), 1)
    config = config_of(keep_checkpoints=100)
    whole = run(tmp_path / "whole", encoded, config)
    found = find_checkpoints(tmp_path / "whole")
    assert len(found) > 5
    for saved in found:
        assert_same(run(tmp_path / f"from {saved.name}", encoded, config, resume_from=saved), whole)


@pytest.mark.parametrize("stop_at", [8, 14, 20])
def test_roll_backs_and_halved_rates_come_back(tmp_path: Path, stop_at: int) -> None:
    """Bad steps, a roll-back, a stop at some moment around them: the same end."""
    encoded = make_encoded(tmp_path, count=6)
    config = config_of(guards=GuardConfig(max_bad_steps=1), optimizer={"gradient_accumulation": 1})

    class BadData(ToyDenoiser):  # the rate that is too high is bad every time, the halved one never
        def __init__(self) -> None:
            super().__init__()
            self.rate_is_high = True

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            answer = super().forward(*args, **kwargs)
            bad = torch.is_grad_enabled() and self.step in (11, 12) and self.rate_is_high
            return answer * float("nan") if bad else answer

        step = 0

    def go(folder: Path, stop: int | None, **options: Any) -> tuple[TrainResult, list[str]]:
        denoiser, controls, said = BadData(), Controls(), []

        def watch(event: Event) -> None:
            if isinstance(event, StepEvent):
                denoiser.step = event.step
                if event.step == stop:
                    controls.stop()
            if isinstance(event, MessageEvent):
                said.append(event.text)
                denoiser.rate_is_high = "back at step" not in event.text

        saved = options.get("resume_from")
        if saved is not None:
            state = read_state(saved)
            denoiser.step, denoiser.rate_is_high = state.step, state.guard["rate"] == 1.0
        result = train(denoiser, encoded, config, run_folder=folder, controls=controls, emit=watch, **options)
        return result, said

    whole, said = go(tmp_path / "whole", None)
    assert any("back at step 10, with 0.5 of the learning rate" in text for text in said), said
    go(tmp_path / "part", stop_at)
    saved = find_checkpoints(tmp_path / "part")[-1]
    rest, _ = go(tmp_path / "part", None, resume_from=saved)
    assert_same(rest, whole)
    state = read_state(find_checkpoints(tmp_path / "part")[-1])
    assert state.guard["rate"] == 0.5 and state.guard["rollbacks"] == 1


def test_what_may_change_may(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    run(tmp_path / "run", encoded, config_of(), stop_at=6)
    saved = find_checkpoints(tmp_path / "run")[-1]
    longer = config_of(optimizer={"learning_rate": 1e-3, "weight_decay": 0.1})
    longer = dataclasses.replace(longer, steps=30)
    assert run(tmp_path / "run", encoded, longer, resume_from=saved).step == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 8}, "Use the rank and target modules it was made with"),
        ({"kind": "loha"}, "its kind of adapter is lora and is loha now"),
    ],
)
def test_what_must_not_change_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    encoded, config = make_encoded(tmp_path), config_of()
    run(tmp_path / "run", encoded, config, stop_at=3)
    saved = find_checkpoints(tmp_path / "run")[-1]
    other = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, **change))
    with pytest.raises(KilnError, match=message):
        run(tmp_path / "run", encoded, other, resume_from=saved)


def test_memory_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    run(tmp_path / "run", encoded, config_of(optimizer={"optimizer": "adafactor"}), stop_at=3)
    saved = find_checkpoints(tmp_path / "run")[-1]
    with pytest.raises(KilnError, match="does not fit AdamW"):
        run(tmp_path / "run", encoded, config_of(), resume_from=saved)


def test_newest_and_best_stay_and_the_manifest_names_them(tmp_path: Path) -> None:
    encoded = hold_out(make_encoded(tmp_path, count=6), 1)
    config = config_of(optimizer={"learning_rate": 0.1}, keep_checkpoints=1)
    result = run(tmp_path / "run", encoded, config)
    best = min(result.validation[1:], key=lambda p: p.loss)
    assert 0 < best.step < 24  # at this rate it gets worse again
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert manifest["newest"] == "step-00000024" and manifest["best"] == f"step-{best.step:08d}"
    assert [p.name for p in find_checkpoints(tmp_path / "run")] == manifest["whole"]
    found = best_checkpoint(tmp_path / "run")
    assert found is not None and read_state(found).step == best.step


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json"])
def test_cut_short_is_not_listed(tmp_path: Path, name: str) -> None:
    run(tmp_path / "run", make_encoded(tmp_path), config_of())
    older, newest = find_checkpoints(tmp_path / "run")
    file = newest / name
    file.write_bytes(file.read_bytes()[:-10])
    assert find_checkpoints(tmp_path / "run") == [older]


def test_changed_bytes_are_not_loaded(tmp_path: Path) -> None:
    run(tmp_path / "run", make_encoded(tmp_path), config_of())
    file = find_checkpoints(tmp_path / "run")[-1] / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(KilnError, match=r"adapter.safetensors has changed since it was written"):
        read_adapter(file.parent)


def test_starting_from_a_lora(tmp_path: Path) -> None:
    encoded, config = make_encoded(tmp_path), make_config(steps=3)
    first = run(tmp_path / "a", encoded, config)
    second = run(tmp_path / "b", encoded, make_config(steps=1, learning_rate=0.0), start_from=first.adapter)
    assert all(torch.equal(first.adapter[k], second.adapter[k]) for k in first.adapter)


def test_a_run_keeps_its_layers_when_others_are_the_default_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = hold_out(make_encoded(tmp_path, count=7, shapes=SHAPES), 2)
    config = config_of()
    whole = run(tmp_path / "whole", encoded, config)
    run(tmp_path / "first", encoded, config, stop_at=9)
    monkeypatch.setattr(targets, "NEVER_DEFAULT_TARGETS", re.compile("."))
    with pytest.raises(KilnError, match="matches no linear layer"):
        run(tmp_path / "new", encoded, config)
    checkpoint = find_checkpoints(tmp_path / "first")[-1]
    assert_same(run(tmp_path / "first", encoded, config, resume_from=checkpoint), whole)
