"""LoRA files as they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainer.config import AdapterConfig, TrainConfig
from trainer.dataset.encoded import EncodedDataset
from trainer.errors import KilnError
from trainer.lora_files.convert import convert_keys
from trainer.lora_files.export import export_adapter
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.metadata import Origin, origin_metadata
from trainer.lora_files.save import save_lora
from trainer.safefile import write_safetensors

STATE = {"blocks.0.q.lora_A.weight": torch.randn(4, 8), "blocks.0.q.lora_B.weight": torch.randn(8, 4)}


def test_alpha_is_written_where_it_differs() -> None:
    same = export_adapter(STATE, AdapterConfig(rank=4, alpha=4.0))
    assert set(same) == {"diffusion_model." + k for k in STATE}
    other = export_adapter(STATE, AdapterConfig(rank=4, alpha=2.0))
    assert other["diffusion_model.blocks.0.q.alpha"].item() == 2.0


def test_kohya_format() -> None:
    kohya = convert_keys(export_adapter(STATE, AdapterConfig(rank=4, alpha=4.0)), "kohya")
    assert set(kohya) == {
        f"lora_unet_blocks_0_q.{k}" for k in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert kohya["lora_unet_blocks_0_q.alpha"].item() == 4.0
    assert torch.equal(kohya["lora_unet_blocks_0_q.lora_up.weight"], STATE["blocks.0.q.lora_B.weight"])


def test_saved_file_tells_its_origin(tmp_path: Path) -> None:
    origin = Origin(
        config=TrainConfig(steps=5),
        dataset=EncodedDataset(()),
        base_model="base",
        steps=5,
        graph={"workflow": {"nodes": []}, "prompt": None},
    )
    metadata = origin_metadata(origin)
    lora = LoraWeights(export_adapter(STATE, AdapterConfig(rank=4, alpha=2.0)), metadata)
    save_lora(tmp_path / "sub" / "a.safetensors", lora, dtype="bf16")
    with safe_open(tmp_path / "sub" / "a.safetensors", "pt") as opened:
        found = opened.metadata()
    assert json.loads(found["workflow"]) == {"nodes": []} and "prompt" not in found
    assert json.loads(found["lora_kiln.config"]) == TrainConfig(steps=5).to_dict()
    tensors = load_file(tmp_path / "sub" / "a.safetensors")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "sub" / "a.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    assert tensors["diffusion_model.blocks.0.q.lora_A.weight"].dtype == torch.bfloat16
    assert tensors["diffusion_model.blocks.0.q.alpha"].dtype == torch.float32


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.safefile.save_file", full_disk)
    with pytest.raises(KilnError, match=r"Cannot write .*No space left on device.*check free space"):
        write_safetensors(tmp_path / "a.safetensors", {}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factor", [1e6, 1e-12])
def test_what_fp16_cannot_hold_is_named(tmp_path: Path, factor: float) -> None:
    big = {
        k: t * factor if "lora_B" in k else t for k, t in export_adapter(STATE, AdapterConfig(rank=4)).items()
    }
    with pytest.raises(
        KilnError, match=r"blocks.0.q.lora_B.weight has values up to .*save it as bf16 or fp32"
    ):
        save_lora(tmp_path / "a.safetensors", big, dtype="fp16")
    assert not list(tmp_path.iterdir())
    for dtype in ("bf16", "fp32", "keep"):
        save_lora(tmp_path / "a.safetensors", big, dtype=dtype)
    zero = {k: torch.zeros_like(t) for k, t in big.items()}
    save_lora(tmp_path / "a.safetensors", zero, dtype="fp16")
