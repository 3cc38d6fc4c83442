"""Layers that are several in diffusers: joined and split again they are the same update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import KilnError
from trainer.lora_files.convert import convert_keys
from trainer.lora_files.formulas import delta_weight, group_by_layer
from trainer.lora_files.keys import PREFIX
from trainer.lora_files.read import read_lora
from trainer.lora_files.save import save_lora
from trainer.lora_files.split_layers import join, split_rows

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
WIDTH = 6


def part(rows: int, rank: int, draws: torch.Generator, alpha: float | None) -> dict[str, Tensor]:
    tensors = {
        "lora_A.weight": torch.randn(rank, WIDTH, generator=draws),
        "lora_B.weight": torch.randn(rows, rank, generator=draws),
    }
    return tensors if alpha is None else {**tensors, "alpha": torch.tensor(alpha)}


@pytest.mark.parametrize("seed", range(40))
def test_parts_of_any_rank_and_alpha(seed: int) -> None:
    """Joined they are their updates one below the other, a missing one zeros; split again they have their own ranks."""
    draws = torch.Generator().manual_seed(seed)
    widths = (1, 1, 1, 4) if seed % 2 else (1, 1, 1)
    present = [i for i in range(len(widths)) if torch.rand((), generator=draws) < 0.8] or [0]
    shared = seed % 3 == 0
    parts = {}
    for i in present:
        rank = 2 if shared else int(torch.randint(1, 5, (), generator=draws))
        parts[i] = part(widths[i] * WIDTH, rank, draws, None if seed % 5 == 0 else 3.0)
        if shared:
            parts[i]["lora_A.weight"] = parts[present[0]]["lora_A.weight"]
    joined = join(parts, widths)
    assert joined is not None
    found = delta_weight(joined, torch.float64)
    assert found is not None
    again = split_rows("x", joined, len(widths))
    row = 0
    for i, width in enumerate(widths):
        expected = delta_weight(parts[i], torch.float64) if i in parts else torch.zeros(width * WIDTH, WIDTH)
        assert expected is not None
        torch.testing.assert_close(found[row : row + len(expected)], expected.double(), rtol=1e-6, atol=1e-6)
        split = delta_weight(again[i], torch.float64)
        assert split is not None
        torch.testing.assert_close(split, expected.double(), rtol=1e-6, atol=1e-6)
        assert len(again[i]["lora_A.weight"]) == (len(parts[i]["lora_A.weight"]) if i in parts else 1)
        row += len(expected)
    if shared:
        assert len(joined["lora_A.weight"]) == 2, "one A for all"


def flux_lora() -> dict[str, Tensor]:
    """As diffusers writes it, with only q of the double block and a DoRA in the single one."""
    draws = torch.Generator().manual_seed(1)
    lora: dict[str, Tensor] = {}
    for layer, rows in (
        ("transformer_blocks.0.attn.to_q", WIDTH),
        *((f"single_transformer_blocks.0.{name}", WIDTH) for name in QKV),
        ("single_transformer_blocks.0.proj_mlp", 4 * WIDTH),
    ):
        for name, tensor in part(rows, 2, draws, None).items():
            lora[f"transformer.{layer}.{name}"] = tensor
        if layer.startswith("single"):
            lora[f"transformer.{layer}.lora_magnitude_vector"] = torch.rand(rows, generator=draws)
    return lora


def test_a_flux_lora_of_diffusers_there_and_back(tmp_path: Path) -> None:
    start = flux_lora()
    save_file(start, tmp_path / "x.safetensors")
    read = read_lora(tmp_path / "x.safetensors")
    layers = group_by_layer(read)
    assert set(layers) == {f"{PREFIX}double_blocks.0.img_attn.qkv", f"{PREFIX}single_blocks.0.linear1"}
    assert layers[f"{PREFIX}single_blocks.0.linear1"]["lora_magnitude_vector"].shape == (7 * WIDTH,)
    again = load_file(save_lora(tmp_path / "y.safetensors", read, format="diffusers", dtype="keep"))
    for key, tensor in start.items():
        torch.testing.assert_close(again[key], tensor, rtol=0, atol=0, msg=key)


def test_parts_in_fp8_are_joined_too(tmp_path: Path) -> None:
    start = {k: t.to(torch.float8_e4m3fn) for k, t in flux_lora().items()}
    save_file(start, tmp_path / "x.safetensors")
    save_file({k: t.float() for k, t in start.items()}, tmp_path / "wide.safetensors")
    found, wide = read_lora(tmp_path / "x.safetensors"), read_lora(tmp_path / "wide.safetensors")
    assert found.keys() == wide.keys()
    for key, tensor in wide.items():
        torch.testing.assert_close(found[key].float(), tensor, rtol=0, atol=0, msg=key)


def test_parts_that_cannot_be_joined_keep_their_names(tmp_path: Path) -> None:
    """A LoKr on q alone: ComfyUI applies it to those rows itself."""
    layer = "transformer.single_transformer_blocks.0.attn.to_q"
    start = {f"{layer}.lokr_w1": torch.ones(2, 2), f"{layer}.lokr_w2": torch.ones(3, 3)}
    save_file(start, tmp_path / "x.safetensors")
    assert set(read_lora(tmp_path / "x.safetensors")) == set(start)


def test_kinds_that_cannot_be_split_are_refused() -> None:
    layer = f"{PREFIX}double_blocks.0.img_attn.qkv"
    lora = {f"{layer}.hada_{name}": torch.ones(*shape) for name, shape in _LOHA.items()}
    with pytest.raises(KilnError, match="is 3 layers in diffusers, and its LoHa cannot be split"):
        convert_keys(lora, "peft")


_LOHA = {"w1_a": (18, 2), "w1_b": (2, 6), "w2_a": (18, 2), "w2_b": (2, 6)}


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_models_that_diffusers_lacks_are_refused(format: str) -> None:
    for layer in ("blocks.0.cross_attn.q_proj", "layers.0.attn.to_q"):  # Anima, Omnigen2
        lora = {
            f"{PREFIX}{layer}.{name}": tensor for name, tensor in part(6, 2, torch.Generator(), None).items()
        }
        with pytest.raises(
            KilnError, match=f"diffusers has no model with layers such as {layer}; save it as comfyui"
        ):
            convert_keys(lora, format)


def test_musubi_s_names_of_hunyuan_video() -> None:
    lora = {}
    for layer in ("double_blocks.19.img_mlp.0", "double_blocks.19.txt_attn.qkv"):
        for name, tensor in part(6, 2, torch.Generator(), None).items():
            lora[f"{PREFIX}{layer}.{name}"] = tensor
    assert {key.split(".")[0] for key in convert_keys(lora, "kohya")} == {
        "lora_unet_double_blocks_19_img_mlp_fc1",
        "lora_unet_double_blocks_19_txt_attn_qkv",
    }
