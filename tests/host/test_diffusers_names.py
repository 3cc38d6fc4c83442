"""LoRA files in the words of diffusers and of sd-scripts and musubi-tuner, for each family that has them; see
diffusers_names_run.py for what is compared."""

from __future__ import annotations

from typing import Any

import pytest

from .in_host import run_in_host

KOHYA = {
    # Names that sd-scripts and musubi-tuner write; theirs are dotted names with _ for each dot
    "SD 1.5": "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "SDXL": "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    "SD 3.5": "joint_blocks_0_x_block_attn_qkv",
    "Flux dev": "double_blocks_0_img_attn_qkv",
    "Flux 2": "single_blocks_0_linear1",
    "Qwen-Image": "transformer_blocks_0_attn_to_q",
    "Z-Image": "layers_0_attention_to_q",
    "HunyuanVideo": "double_blocks_0_img_attn_qkv",
    "LTX-Video": "transformer_blocks_0_attn1_to_q",
}


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    return run_in_host("diffusers_names_run.py", arguments=())


@pytest.mark.parametrize("name", KOHYA)
def test_diffusers_reads_what_we_write(rows: dict[str, Any], name: str) -> None:
    """Every layer, no key unused, and the weights that diffusers' converter of whole models gives."""
    row = rows[name]
    assert row["changed"] >= row["layers"] > 8
    assert row["missing"] == [] and row["said"] == []
    assert row["diffusers"] < 1e-6


@pytest.mark.parametrize("name", KOHYA)
def test_we_read_what_we_write(rows: dict[str, Any], name: str) -> None:
    assert rows[name]["read back"] < 1e-6


@pytest.mark.parametrize("name", KOHYA)
def test_kohya_s_names(rows: dict[str, Any], name: str) -> None:
    assert f"lora_unet_{KOHYA[name]}" in rows[name]["kohya"]
