"""Checkpoints on disk: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.errors import KilnError
from trainer.runs.checkpoint import RunState, read_state, restore_optimizer, save_checkpoint
from trainer.runs.checkpoint_list import find_checkpoints


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


def test_checkpoint_round_trip_and_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert [p.name for p in find_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    assert read_state(find_checkpoints(tmp_path)[-1]) == make_state(10)
    _, reference = stepped_optimizer()
    fresh = torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=0.5)
    restore_optimizer(find_checkpoints(tmp_path)[-1], fresh)
    for name, value in reference.state_dict()["state"][0].items():
        assert torch.equal(fresh.state_dict()["state"][0][name], value), name
    assert fresh.param_groups[0]["lr"] == 0.5


def test_half_written_checkpoint_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.runs.checkpoint.save_file", full)
    with pytest.raises(KilnError, match="No space left on device"):
        save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "step-00000001"]
    (tmp_path / "step-00000003").mkdir()  # a folder without its state
    assert [p.name for p in find_checkpoints(tmp_path)] == ["step-00000001"]


def test_the_list_of_checkpoints_is_made_again_where_a_kill_prevented_it(tmp_path: Path) -> None:
    save(tmp_path, 3)
    manifest = (tmp_path / "manifest.json").read_text("utf-8")
    (tmp_path / "manifest.json").unlink()
    save(tmp_path, 3)
    assert (tmp_path / "manifest.json").read_text("utf-8") == manifest
