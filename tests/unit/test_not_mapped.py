"""Tensors that were read do not keep their file mapped: on Windows it could be neither replaced nor deleted."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.unit.toy import ToyDenoiser, make_config, make_encoded
from trainer.config import AdapterConfig
from trainer.dataset.encoded import load_latent, load_text
from trainer.loop.train import train
from trainer.lora_files.describe import describe
from trainer.lora_files.export import export_adapter
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.read import read_lora
from trainer.lora_files.save import save_lora
from trainer.model_files.extract_lora import extract_lora
from trainer.runs.checkpoint import read_adapter, read_output
from trainer.runs.checkpoint_list import find_checkpoints
from trainer.runs.run import LORA, Run, load_run, save_result
from trainer.safefile import write_safetensors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is mapped")

LAYER = "blocks.0.self_attn.q"


def mapped(folder: Path) -> list[str]:
    gc.collect()
    maps = Path("/proc/self/maps").read_text("utf-8", errors="replace")
    return [line.split()[-1] for line in maps.splitlines() if str(folder) in line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One of each file that we write: a run with checkpoints and LoRA, encoded items, a model and its fine-tune."""
    encoded = make_encoded(tmp_path / "items")
    config = make_config(steps=2, ema_decay=0.9)
    result = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "run")
    state = {f"{LAYER}.lora_A.weight": torch.randn(4, 800), f"{LAYER}.lora_B.weight": torch.randn(800, 4)}
    lora = LoraWeights(export_adapter(state, AdapterConfig(rank=4, alpha=2.0)))
    run = Run(
        run_id="run",
        folder=tmp_path / "run",
        config=config,
        lora=lora,
        losses=result.losses,
        seconds=1.0,
        stopped=False,
        trained_parameters=1,
        model_parameters=1,
    )
    save_lora(run.folder / LORA, lora)
    save_lora(tmp_path / "adapter.safetensors", lora, format="peft")
    save_result(run)
    for name in ("base", "tuned"):
        write_safetensors(tmp_path / f"{name}.safetensors", {f"{LAYER}.weight": torch.randn(800, 800)})
    return tmp_path


def checkpoint(folder: Path) -> Path:
    return find_checkpoints(folder / "run")[-1]


READERS: dict[str, Callable[[Path], object]] = {
    "read_lora": lambda folder: read_lora(folder / "run" / LORA),
    "read_lora of peft": lambda folder: read_lora(folder / "adapter"),
    "describe": lambda folder: describe(folder / "run" / LORA),
    "load_run": lambda folder: load_run(folder / "run"),
    "read_adapter": lambda folder: read_adapter(checkpoint(folder)),
    "read_output": lambda folder: read_output(checkpoint(folder)),
    "load_latent": lambda folder: load_latent(folder / "items" / "latent0.safetensors"),
    "load_text": lambda folder: load_text(folder / "items" / "text0.safetensors"),
    "extract_lora": lambda folder: extract_lora(folder / "tuned.safetensors", folder / "base.safetensors", 4),
}


@pytest.mark.parametrize("name", READERS)
def test_what_was_read_is_not_mapped(name: str, folder: Path) -> None:
    kept = READERS[name](folder)
    assert mapped(folder) == []
    del kept


def test_the_test_would_see_it(folder: Path) -> None:
    with safe_open(folder / "base.safetensors", "pt") as opened:
        kept = opened.get_tensor(f"{LAYER}.weight")
    assert mapped(folder), "safetensors' own tensors keep the file mapped"
    del kept
    assert mapped(folder) == []
