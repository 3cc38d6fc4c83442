"""Which checkpoint a run goes on from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.config import (
    AdapterConfig,
    MemoryConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
    ValidationConfig,
)
from trainer.errors import CannotResume, KilnError
from trainer.events import Event, StepEvent, ValidationEvent
from trainer.loop.checks import resolve_auto
from trainer.loop.train import train
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.save import save_lora
from trainer.runs.checkpoint import RunState, read_state, save_checkpoint
from trainer.runs.checkpoint_list import find_checkpoints
from trainer.runs.differences import Difference, differences
from trainer.runs.resume import (
    Continuation,
    choose_checkpoint,
    continue_run,
    resume_labels,
    run_folder_for,
    why_anew,
)
from trainer.runs.run import LORA, Run, save_result

from ..toy import ToyDenoiser, hold_out, make_config, make_encoded


def make_state(step: int, dataset: str = "d") -> RunState:
    return RunState(
        step=step, losses=[1.0] * step, config=TrainConfig().to_dict(), dataset=dataset, base_model="m"
    )


def stepped_optimizer() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    return parameter, optimizer


def save(folder: Path, step: int, dataset: str = "d") -> Path:
    parameter, optimizer = stepped_optimizer()
    return save_checkpoint(folder, make_state(step, dataset), {"a": parameter.detach()}, optimizer)


def test_latest_is_of_this_dataset_and_model(tmp_path: Path) -> None:
    save(tmp_path / "20260101-a", 5)
    save(tmp_path / "20260102-b", 7, dataset="other")
    found = choose_checkpoint(tmp_path, "latest", "d", "m", AdapterConfig())
    assert found is not None and found.parent.name == "20260101-a"
    assert choose_checkpoint(tmp_path, "latest", "d", "another model", AdapterConfig()) is None
    assert choose_checkpoint(tmp_path, "latest", "d", "m", AdapterConfig(rank=8)) is None
    assert choose_checkpoint(tmp_path / "nowhere", "latest", "d", "m", AdapterConfig()) is None
    assert choose_checkpoint(tmp_path, "new run", "d", "m", AdapterConfig()) is None


def test_latest_is_what_was_written_last_whatever_its_name(tmp_path: Path) -> None:
    """Runs of one second have names in no order."""
    for name in ("20260101-120000-cc", "20260101-120000-aa", "20260101-120000-bb"):
        save(tmp_path / name, 5)
        found = choose_checkpoint(tmp_path, "latest", "d", "m", AdapterConfig())
        assert found is not None and found.parent.name == name
    save(tmp_path / "20260101-120000-aa", 9)  # resumed
    labels = [label.removeprefix("20260101-120000-") for label in resume_labels(tmp_path)]
    assert labels == ["aa step 9", "aa step 5", "bb step 5", "cc step 5"]
    assert len(resume_labels(tmp_path, limit=3)) == 3


def test_a_run_or_a_step_can_be_chosen(tmp_path: Path) -> None:
    for step in (5, 9):
        save(tmp_path / "20260101-a", step)
    save(tmp_path / "20260102-b", 7, dataset="other")
    labels = ["20260102-b step 7", "20260101-a step 9", "20260101-a step 5"]
    assert resume_labels(tmp_path) == labels

    def chosen(label: str) -> str:
        path = choose_checkpoint(tmp_path, label, "d", "m", AdapterConfig())
        return "" if path is None else path.name

    assert chosen("20260101-a") == chosen("20260101-a step 9 best") == "step-00000009"
    assert chosen("20260101-a step 5") == "step-00000005"
    with pytest.raises(KilnError, match=r"20260102-b cannot be resumed.*Runs that fit: 20260101-a\."):
        chosen("20260102-b step 7")
    with pytest.raises(KilnError, match="There is no checkpoint '20260101-a step 6' any more"):
        chosen("20260101-a step 6")
    with pytest.raises(KilnError, match="any more"):
        chosen("../../etc step 1")


def test_going_on_from_an_older_step_leaves_the_newer_ones_alone(tmp_path: Path) -> None:
    older, newer = save(tmp_path / "run", 5), save(tmp_path / "run", 9)
    assert run_folder_for(newer, tmp_path / "fresh") == tmp_path / "run"
    assert run_folder_for(older, tmp_path / "fresh") == tmp_path / "fresh"
    assert [p.name for p in find_checkpoints(tmp_path / "fresh")] == ["step-00000005"]


def test_what_differs_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "run", 5)
    rank = AdapterConfig(rank=8)
    now = AdapterConfig().rank
    assert differences(path, "d", "m", AdapterConfig()) == []
    (found,) = differences(path, "d", "m", rank)
    assert found == Difference(f"its rank is {now} and is 8 now", False)
    assert [d.sound for d in differences(path, "other", "another", AdapterConfig())] == [False, True]
    with pytest.raises(
        CannotResume, match=f"run run cannot be resumed: its rank is {now} and is 8 now"
    ) as refused:
        choose_checkpoint(tmp_path, "run", "d", "m", rank)
    assert refused.value.offer == "", "a checkpoint of another rank fits nothing"
    with pytest.raises(CannotResume, match="its dataset is another one") as refused:
        choose_checkpoint(tmp_path, "run", "other", "m", AdapterConfig())
    assert refused.value.offer == "run step 5 anyway"
    assert choose_checkpoint(tmp_path, refused.value.offer, "other", "m", AdapterConfig()) == path
    with pytest.raises(CannotResume, match="its model is another one"):
        choose_checkpoint(tmp_path, refused.value.offer, "other", "another", AdapterConfig())
    with pytest.raises(CannotResume, match="it trained the model alone, and a CLIP is connected"):
        choose_checkpoint(tmp_path, "run", "d", "m+text", AdapterConfig())


def test_latest_that_starts_anew_says_why(tmp_path: Path) -> None:
    assert why_anew(tmp_path, "d", "m", AdapterConfig()) == ("", "")
    save(tmp_path / "20260101-a", 5, dataset="other")
    save(tmp_path / "20260102-b", 7, dataset="other")
    sentence, offer = why_anew(tmp_path, "d", "m", AdapterConfig(rank=8))
    assert "20260102-b (7 steps)" in sentence and "its rank" in sentence and "its dataset" in sentence
    assert offer == ""
    assert why_anew(tmp_path, "d", "m", AdapterConfig())[1] == "20260102-b step 7 anyway"


def test_only_a_run_that_is_the_same_goes_on_in_its_folder(tmp_path: Path) -> None:
    path, fresh = save(tmp_path / "run", 5), tmp_path / "fresh"
    usual = TrainConfig()

    def goes_on(dataset: str = "d", **changes: Any) -> Continuation:
        return continue_run(path, fresh, dataclasses.replace(usual, **{"steps": 9, **changes}), dataset)

    free = {
        "checkpoint_every": 1,
        "memory": MemoryConfig(level="stream blocks"),
        "sample": SampleConfig(every=3),
    }
    for same in ({}, free):
        assert goes_on(**same) == Continuation(folder=tmp_path / "run", checkpoint=path)
    assert not fresh.exists()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"seed": 7}, "seed is 0 and is 7 now"),
        ({"optimizer": OptimizerConfig(learning_rate=0.5)}, "learning_rate is 0.0001 and is 0.5 now"),
        ({"memory": MemoryConfig(base_precision="fp8")}, "base_precision is as it is and is fp8 now"),
        ({"dataset": "other"}, "its dataset is another one"),
    ]
    for other, why in changes:
        found = goes_on(**other)
        assert (found.folder, found.checkpoint, found.parent) == (fresh, fresh / path.name, "run")
        assert found.notice == f"A new run that goes on from step 5 of the run run ({why})."
        assert read_state(found.checkpoint).dataset == other.get("dataset", "d")
        shutil.rmtree(fresh)
    with pytest.raises(KilnError, match="run run has done 5 steps and steps is 1"):
        goes_on(steps=1)
    assert not fresh.exists() and read_state(path) == make_state(5)


@pytest.mark.parametrize(
    "left", ["checkpoint", "checkpoint and LoRA", "checkpoint and result", "a stopped result"]
)
def test_a_run_that_lacks_its_end_alone_is_ended(tmp_path: Path, left: str) -> None:
    """Killed after its last checkpoint, before its LoRA or its result was written; or stopped there."""
    encoded = hold_out(make_encoded(tmp_path, count=7), 2)
    config = make_config(steps=9, dropout=0.2, gradient_accumulation=2, ema_decay=0.9)
    config = dataclasses.replace(config, checkpoint_every=4, validation=ValidationConfig(every=3))
    config = resolve_auto(config, ToyDenoiser(), None)
    folder = tmp_path / "run"
    events: list[Event] = []

    def as_run(resume_from: Path | None = None) -> Run:
        result = train(
            ToyDenoiser(), encoded, config, run_folder=folder, resume_from=resume_from, emit=events.append
        )
        figures = ("config", "losses", "stopped", "validation", "advice", "adapter_step")
        return Run(
            run_id="run",
            folder=folder,
            lora=LoraWeights({f"diffusion_model.{k}": v for k, v in result.adapter.items()}),
            seconds=1.0,
            trained_parameters=3,
            model_parameters=30,
            **{name: getattr(result, name) for name in figures},
        )

    def goes_on(**changes: Any) -> Continuation:
        newest = find_checkpoints(folder)[-1]
        return continue_run(
            newest, tmp_path / "fresh", dataclasses.replace(config, **changes), encoded.fingerprint
        )

    whole = as_run()
    if "LoRA" in left or "stopped" in left:
        save_lora(folder / LORA, whole.lora)
    if "result" in left:
        save_result(dataclasses.replace(whole, stopped="stopped" in left))
    found = goes_on()
    assert found.finished is None and not found.parent
    assert (found.folder, found.checkpoint.name) == (folder, "step-00000009")
    assert found.notice.startswith("The run run has done its 9 steps: nothing is trained")
    for changes in ({"steps": 8}, {"seed": 5}):
        with pytest.raises(KilnError, match="nothing is left to train"):
            goes_on(**changes)

    events.clear()
    ended = as_run(found.checkpoint)
    assert not any(isinstance(event, StepEvent | ValidationEvent) for event in events)
    assert ended.lora.keys() == whole.lora.keys()
    assert all(torch.equal(ended.lora[key], whole.lora[key]) for key in whole.lora)
    assert dataclasses.replace(ended, lora=whole.lora) == whole and len(ended.losses) == 9
    save_lora(folder / LORA, ended.lora)
    save_result(ended)
    finished = goes_on().finished
    assert finished is not None and finished.losses == whole.losses
