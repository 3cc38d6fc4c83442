"""The table of model families: each is recognised by its layers, and code elsewhere names none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer import families
from trainer.families import FAMILIES, WAN, family_of_layers

REPO = Path(__file__).parents[2]
EXAMPLES = {
    "Wan": "diffusion_model.blocks.0.self_attn.q",
    "Flux or HunyuanVideo": "lora_unet_double_blocks_0_img_attn_qkv",
    "HunyuanVideo": "lora_unet_double_blocks_19_img_attn_qkv",
    "Qwen-Image": "transformer_blocks.0.attn.add_q_proj",
    "SDXL": "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q",
    "Stable Diffusion (UNet)": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "Stable Diffusion 3": "joint_blocks.0.x_block.attn.qkv",
    "LTX-Video": "transformer_blocks.0.attn1.to_q",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_family_is_told_from_its_layers(name: str) -> None:
    family = family_of_layers(["some.other.layer", EXAMPLES[name]])
    assert family is not None and family.name == name


def test_families_of_the_same_names_are_told_apart_by_shapes() -> None:
    single, attention = "diffusion_model.single_blocks.3.linear1", "diffusion_model.layers.0.attention.qkv"
    for layer, ratio, name in (
        (single, 9, "Flux 2"),
        (single, 7, "Flux or HunyuanVideo"),
        (attention, 3, "Z-Image"),
    ):
        family = family_of_layers([layer], {layer: (ratio * 64, 64)})
        assert family is not None and family.name == name
    assert family_of_layers([attention], {attention: (128, 96)}) is None  # Lumina 2


@pytest.mark.parametrize(
    "layer", ["blocks.0.cross_attn.q_proj", "blocks.0.attn.qkv", "blocks.0.self_attn.norm_q"]
)
def test_others_are_not_taken_for_wan(layer: str) -> None:
    assert family_of_layers([layer]) is None


def test_a_network_of_no_known_family_is_none() -> None:
    assert family_of_layers(["encoder.layers.0.attention.q"]) is None


def test_names_are_unambiguous() -> None:
    """A table that maps two layers to one name could not be read back."""
    for family in FAMILIES:
        for table in (*(blocks.layers or {} for blocks in family.blocks), family.diffusers_outside):
            names = [n for value in table.values() for n in ((value,) if isinstance(value, str) else value)]
            assert len(set(names)) == len(names), family.name
    (wan, _) = (blocks.layers or {} for blocks in WAN.blocks)
    assert wan["norm2"] == "norm3"  # diffusers numbers Wan's norms otherwise


def test_nothing_else_branches_on_a_family() -> None:
    """What a family does otherwise is a value in the table, never an `if` somewhere."""
    constants = "|".join(name for name, value in vars(families).items() if isinstance(value, families.Family))
    branch = re.compile(rf"family\.name\s*(==|!=| in )|(?<![.\w])({constants})\b")
    hits = [
        f"{file.relative_to(REPO)}:{number}"
        for folder in ("trainer", "nodes")
        for file in (REPO / folder).rglob("*.py")
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if file.name != "families.py" and branch.search(line)
    ]
    assert hits == []
