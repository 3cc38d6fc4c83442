"""Extracting a LoRA from two model files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import KilnError
from trainer.lora_files.lora_weights import LoraWeights
from trainer.model_files.extract_lora import extract_lora
from trainer.model_files.merge_into_file import WeightedLora, merge_into_file

PRE = "model.diffusion_model."


LAYERS = ("blocks.0.self_attn.q", "blocks.1.ffn.0")


OURS = "diffusion_model."


def base_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    tensors = {f"{PRE}{layer}.weight": torch.randn(48, 32, generator=g).to(dtype) for layer in LAYERS}
    tensors[f"{PRE}blocks.0.self_attn.q.bias"] = torch.randn(48, generator=g)
    tensors["other.weight"] = torch.randn(7, 3, generator=g)
    return tensors


def lora(alpha: float = 2.0, rank: int = 4, seed: int = 1) -> LoraWeights:
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        tensors[f"{OURS}{layer}.lora_A.weight"] = 0.1 * torch.randn(rank, 32, generator=g)
        tensors[f"{OURS}{layer}.lora_B.weight"] = 0.1 * torch.randn(48, rank, generator=g)
        tensors[f"{OURS}{layer}.alpha"] = torch.tensor(alpha)
    return LoraWeights(tensors)


def merged(
    tmp_path: Path, tensors: dict[str, Tensor], *loras: tuple[LoraWeights, float], **options: str
) -> Path:
    save_file(tensors, tmp_path / "base.safetensors", {"format": "pt", "author": "someone"})
    target = tmp_path / "out" / "merged.safetensors"
    merge_into_file(tmp_path / "base.safetensors", target, [WeightedLora(x, s) for x, s in loras], **options)
    return target


def test_extract_gives_the_lora_back(tmp_path: Path) -> None:
    path = merged(tmp_path, base_tensors(), (lora(), 1.0))
    found, sentence = extract_lora(path, tmp_path / "base.safetensors", 4)
    assert sentence == (
        "2 layers, 100.00 % of the energy kept; 1 tensors are left out, for they are not the diffusion model's, "
        "such as other.weight"
    )
    for layer in LAYERS:
        expected = 0.5 * lora()[f"{OURS}{layer}.lora_B.weight"] @ lora()[f"{OURS}{layer}.lora_A.weight"]
        ours = found[f"{OURS}{layer}.lora_B.weight"] @ found[f"{OURS}{layer}.lora_A.weight"]
        assert float((ours - expected).norm() / expected.norm()) < 1e-5
    with pytest.raises(KilnError, match="hold the same weights"):
        extract_lora(path, path, 4)


def test_extract_of_values_that_are_no_numbers(tmp_path: Path) -> None:
    base = base_tensors()
    save_file(base, tmp_path / "base.safetensors")
    base[f"{PRE}{LAYERS[0]}.weight"][0, 0] = torch.nan
    save_file(base, tmp_path / "tuned.safetensors")
    with pytest.raises(KilnError, match=r"self_attn.q.weight of tuned.safetensors or .* no numbers; get the"):
        extract_lora(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 4)


def test_extract_across_prefixes_keeps_biases(tmp_path: Path) -> None:
    base = base_tensors()
    bare = {k.removeprefix(PRE): t.clone() for k, t in base.items()}
    bare[f"{LAYERS[0]}.bias"] += 1.0
    save_file(base, tmp_path / "base.safetensors")
    save_file(bare, tmp_path / "tuned.safetensors")
    found, _ = extract_lora(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 4)
    assert list(found) == [f"{OURS}{LAYERS[0]}.diff_b"]
    save_file({"x.weight": torch.ones(2, 2)}, tmp_path / "else.safetensors")
    with pytest.raises(KilnError, match="share no layer"):
        extract_lora(tmp_path / "else.safetensors", tmp_path / "base.safetensors", 4)


def test_what_is_not_extracted_is_named(tmp_path: Path) -> None:
    """Tensors of one file only, quantised ones, and the other parts of a whole checkpoint."""
    base, tuned = base_tensors(), base_tensors()
    tuned[f"{PRE}{LAYERS[0]}.weight"] += 1.0
    tuned[f"{PRE}blocks.0.cross_attn.k_img.weight"] = torch.ones(4, 4)
    base[f"{PRE}blocks.9.ffn.0.weight"] = torch.ones(4, 4)
    for state, value in ((base, 0), (tuned, 1)):
        state[f"{PRE}int.weight"] = torch.full((4, 4), value, dtype=torch.int8)
        state["first_stage_model.x.weight"] = torch.full((4, 4), float(value))
        save_file(state, tmp_path / f"{'tuned' if value else 'base'}.safetensors")
    found, sentence = extract_lora(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 32)
    assert {k.rsplit(".lora", 1)[0] for k in found} == {f"{OURS}{LAYERS[0]}"}
    assert sentence == (
        "1 layers, 100.00 % of the energy kept; 2 tensors are left out, for only one of the files has them, such as "
        f"{PRE}blocks.0.cross_attn.k_img.weight; 1 tensors are left out, for they are quantised, such as "
        f"{PRE}int.weight; 2 tensors are left out, for they are not the diffusion model's, "
        "such as first_stage_model.x.weight"
    )


def test_packed_weights_are_left_out_by_name(tmp_path: Path) -> None:
    """nvfp4 packs two numbers into a byte, so that the shapes differ: that is no other model."""
    tuned, name = base_tensors(), f"{PRE}{LAYERS[0]}"
    tuned[f"{PRE}{LAYERS[1]}.weight"] += 0.1
    packed = tuned | {
        f"{name}.weight": torch.zeros(48, 16, dtype=torch.uint8),
        f"{name}.weight_scale": torch.ones(48, 2).to(torch.float8_e4m3fn),
        f"{name}.weight_scale_2": torch.tensor(0.5),
    }
    save_file(packed, tmp_path / "tuned.safetensors")
    save_file({**base_tensors(), f"{name}.weight_scale_2": torch.tensor(2.0)}, tmp_path / "base.safetensors")
    found, sentence = extract_lora(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 4)
    assert {key.split(".lora_")[0] for key in found} == {f"{OURS}{LAYERS[1]}"}
    assert f"; 1 tensors are left out, for they are quantised, such as {name}.weight" in sentence
    only = {f"{name}.weight": torch.zeros(48, 16, dtype=torch.uint8)}
    save_file(only, tmp_path / "only.safetensors")
    with pytest.raises(KilnError, match=r"share is quantised, such as .*q\.weight; use the fp16"):
        extract_lora(tmp_path / "only.safetensors", tmp_path / "base.safetensors", 4)
