"""Which checkpoint a run goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.config import AdapterConfig, TrainConfig
from trainer.errors import KilnError
from trainer.runs.checkpoint import RunState, find_checkpoints, save_checkpoint
from trainer.runs.resume import choose_checkpoint, resume_labels, run_folder_for


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
