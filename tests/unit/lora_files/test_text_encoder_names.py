"""Layers of text encoders in every tool's spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.errors import KilnError
from trainer.lora_files.convert import convert_keys
from trainer.lora_files.describe import describe
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.merge import merge_loras
from trainer.lora_files.read import read_lora, to_our_keys
from trainer.lora_files.save import save_lora

LAYER = "text_model.encoder.layers.3.self_attn.q_proj"
UNET = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
T5 = "t5xxl.transformer.encoder.block.2.layer.0.SelfAttention.k"


def lora_of(*layers: tuple[str, int], rank: int = 2) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    found = {}
    for layer, width in layers:
        found[f"{layer}.lora_A.weight"] = torch.randn(rank, width, generator=draws)
        found[f"{layer}.lora_B.weight"] = torch.randn(width, rank, generator=draws)
        found[f"{layer}.alpha"] = torch.tensor(rank / 2)
    return found


def ours(encoder: str, layer: str = LAYER) -> str:
    return f"text_encoders.{encoder}.transformer.{layer}"


SD15 = lora_of((UNET, 320), (ours("clip_l"), 768))
SDXL = lora_of((UNET, 640), (ours("clip_l"), 768), (ours("clip_g"), 1280))
FLAT = LAYER.replace(".", "_")


@pytest.mark.parametrize(
    ("lora", "format", "spelled"),
    [
        (SD15, "kohya", [f"lora_te_{FLAT}"]),
        (SD15, "diffusers", [f"text_encoder.{LAYER}"]),
        (SDXL, "kohya", [f"lora_te1_{FLAT}", f"lora_te2_{FLAT}"]),
        (SDXL, "diffusers", [f"text_encoder.{LAYER}", f"text_encoder_2.{LAYER}"]),
        (lora_of((ours("clip_h"), 1024)), "kohya", [f"lora_te_{FLAT}"]),
        (
            lora_of((ours("clip_l"), 768), (f"text_encoders.{T5}", 4096)),
            "kohya",
            [f"lora_te1_{FLAT}", "lora_te3_encoder_block_2_layer_0_SelfAttention_k"],
        ),
    ],
)
def test_written_and_read_back(
    tmp_path: Path, lora: dict[str, Tensor], format: str, spelled: list[str]
) -> None:
    ending = ".lora_down.weight" if format == "kohya" else ".lora_A.weight"
    written = [k.removesuffix(ending) for k in convert_keys(lora, format) if k.endswith(ending)]
    assert [k for k in written if k.startswith(("lora_te", "text_encoder"))] == spelled
    path = save_lora(tmp_path / "x.safetensors", lora, format=format)
    back = read_lora(path)
    assert sorted(back) == sorted(lora)
    assert all(torch.equal(back[k], lora[k]) for k in lora), (
        "alpha too, which diffusers keeps in the metadata"
    )


def test_the_width_tells_which_encoder_it_is() -> None:
    for width, encoder in ((768, "clip_l"), (1024, "clip_h"), (1280, "clip_g")):
        theirs = {
            f"lora_te_{FLAT}.lora_down.weight": torch.ones(2, width),
            f"lora_te_{FLAT}.lora_up.weight": torch.ones(width, 2),
        }
        assert {k.rpartition(".lora_")[0] for k in to_our_keys(theirs)} == {ours(encoder)}


def test_two_spellings_are_merged_as_one_layer(tmp_path: Path) -> None:
    kohya = read_lora(save_lora(tmp_path / "k.safetensors", SD15, format="kohya"))
    merged, _ = merge_loras([LoraWeights(SD15), kohya], [0.5, 0.5])
    assert sorted(merged) == sorted(k for k in SD15 if not k.endswith(".alpha"))
    a, b = (merged[f"{ours('clip_l')}.lora_{x}.weight"] for x in "AB")
    whole = SD15[f"{ours('clip_l')}.lora_B.weight"] @ SD15[f"{ours('clip_l')}.lora_A.weight"] / 2
    assert torch.allclose(b @ a, whole, atol=1e-5)


def test_it_is_described_and_refused_where_there_is_no_name(tmp_path: Path) -> None:
    found = describe(save_lora(tmp_path / "x.safetensors", SDXL, format="kohya"))
    assert found["for"] == "Stable Diffusion (UNet)" and found["layers"] == 3
    assert found["text encoder layers"] == 2
    for lora, format in ((SD15, "peft"), (lora_of((f"text_encoders.{T5}", 4096)), "diffusers")):
        with pytest.raises(KilnError, match="has no name for the layers of the text encoder"):
            convert_keys(lora, format)
