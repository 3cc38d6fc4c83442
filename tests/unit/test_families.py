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
    "Qwen-Image": "transformer_blocks.0.attn.add_q_proj",
    "Stable Diffusion (UNet)": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "Stable Diffusion 3": "joint_blocks.0.x_block.attn.qkv",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_family_is_told_from_its_layers(name: str) -> None:
    family = family_of_layers(["some.other.layer", EXAMPLES[name]])
    assert family is not None and family.name == name


def test_a_network_of_no_known_family_is_none() -> None:
    assert family_of_layers(["encoder.layers.0.attention.q"]) is None


def test_names_are_unambiguous() -> None:
    """A table that maps two layers to one name could not be read back."""
    for family in FAMILIES:
        for table in (family.diffusers_in_block, family.diffusers_outside):
            assert len(set(table.values())) == len(table), family.name
    assert WAN.diffusers_in_block["norm2"] == "norm3"  # diffusers numbers Wan's norms otherwise


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
