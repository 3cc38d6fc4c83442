"""What a run has left: what deleting it takes, and what it never takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import KilnError
from trainer.runs.artifacts import delete_artifacts, find_artifacts, read_graph


def make(folder: Path) -> Path:
    for name in ("step-00000010", "step-00000020", "samples"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(b"12345")
    metadata = {"workflow": json.dumps({"nodes": []})}
    save_file({"x": torch.zeros(2)}, folder / "lora.safetensors", metadata)
    (folder / "run.toml").write_text("steps = 1", "utf-8")
    return folder


def test_all_that_is_ours_goes(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    found = find_artifacts(folder)
    assert (found.checkpoints, found.samples, found.lora, found.foreign_files) == (2, 1, True, [])
    assert found.bytes == 15 + (folder / "lora.safetensors").stat().st_size + 9
    delete_artifacts(folder)
    assert not folder.exists()


def test_what_a_person_put_there_stays(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    elsewhere = tmp_path / "mine"
    elsewhere.mkdir()
    (elsewhere / "keep.safetensors").write_bytes(b"x")
    (folder / "my best lora.safetensors").write_bytes(b"x")
    (folder / "step-00000030").symlink_to(elsewhere, target_is_directory=True)
    assert delete_artifacts(folder).foreign_files == ["my best lora.safetensors", "step-00000030"]
    assert sorted(p.name for p in folder.iterdir()) == ["my best lora.safetensors", "step-00000030"]
    assert (elsewhere / "keep.safetensors").read_bytes() == b"x"


def test_a_run_without_a_folder_left_nothing(tmp_path: Path) -> None:
    assert find_artifacts(tmp_path / "gone").bytes == 0
    delete_artifacts(tmp_path / "gone")


def test_the_graph_comes_from_the_lora(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    assert read_graph(folder) == {"workflow": {"nodes": []}}
    (folder / "lora.safetensors").write_bytes(b"damaged")
    with pytest.raises(KilnError, match="LoRA of the run run cannot be read"):
        read_graph(folder)
    (folder / "lora.safetensors").unlink()
    with pytest.raises(KilnError, match="has left no LoRA"):
        read_graph(folder)
