"""With embed_metadata off no file of a run holds a prompt, and the run goes on without them to the bit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import SampleConfig, TrainConfig, without_prompts
from trainer.dataset.encoded import EncodedDataset
from trainer.loop.train import train
from trainer.lora_files.lora_weights import LoraWeights
from trainer.runs.checkpoint_list import find_checkpoints
from trainer.runs.resume import continue_run
from trainer.runs.run import Run, save_result
from trainer.runs.runfile import RunFile, write_run_file

from ..toy import ToyDenoiser, make_config, make_encoded

SECRET = "nobody else writes this"


def config_of(embed: bool, steps: int = 6) -> TrainConfig:
    sample = SampleConfig(prompts=f"a circle {SECRET}", negative_prompt=SECRET, every=0)
    return dataclasses.replace(
        make_config(steps=steps), embed_metadata=embed, sample=sample, checkpoint_every=3, keep_checkpoints=9
    )


def run(folder: Path, encoded: EncodedDataset, config: TrainConfig, resume: Path | None = None) -> Any:
    write_run_file(folder, RunFile(model={}, config=config), encoded)
    result = train(ToyDenoiser(), encoded, config, run_folder=folder, resume_from=resume)
    figures = ("config", "losses", "seconds", "stopped", "validation", "advice", "adapter_step")
    values = {name: getattr(result, name) for name in figures}
    lora = LoraWeights(result.adapter)
    save_result(Run(run_id="a", folder=folder, lora=lora, trained_parameters=1, model_parameters=2, **values))
    return result


def holding(folder: Path) -> set[str]:
    """Files that hold the secret."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.name for file in files if SECRET.encode() in file.read_bytes()}


def test_no_file_holds_a_prompt_and_the_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path / "items")
    told, silent = (run(tmp_path / name, encoded, config_of(name == "told")) for name in ("told", "silent"))
    assert holding(tmp_path / "told") == {"run.toml", "result.json", "state.json"}
    assert holding(tmp_path / "silent") == set()
    assert all(torch.equal(told.adapter[key], silent.adapter[key]) for key in told.adapter)
    folder = tmp_path / "silent"
    shutil.rmtree(find_checkpoints(folder)[-1])
    goes_on = continue_run(
        find_checkpoints(folder)[-1], tmp_path / "fresh", silent.config, encoded.fingerprint
    )
    assert goes_on.folder == folder and not goes_on.notice
    again = run(folder, encoded, config_of(False), goes_on.checkpoint)
    assert again.losses == told.losses and holding(folder) == set()
    assert all(torch.equal(told.adapter[key], again.adapter[key]) for key in told.adapter)


@pytest.mark.parametrize("embed", [True, False])
def test_a_copy_of_a_checkpoint_keeps_prompts_only_with_metadata(tmp_path: Path, embed: bool) -> None:
    encoded = make_encoded(tmp_path / "items")
    run(tmp_path / "told", encoded, config_of(True))
    now = dataclasses.replace(config_of(embed, steps=9), seed=99)
    newest = find_checkpoints(tmp_path / "told")[-1]
    goes_on = continue_run(newest, tmp_path / "fresh", now, encoded.fingerprint)
    assert goes_on.parent == "told" and holding(tmp_path / "fresh") == ({"state.json"} if embed else set())


@pytest.mark.parametrize("damaged", [{}, {"sample": 3}, {"sample": {"prompts": 1, "every": 2}}])
def test_prompts_leave_settings_of_any_kind(damaged: dict[str, Any]) -> None:
    assert without_prompts({"steps": 1, **damaged}) in ({"steps": 1}, {"steps": 1, "sample": {"every": 2}})
