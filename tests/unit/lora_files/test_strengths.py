"""The small languages for strengths: blocks, schedule, sweep, prompt."""

from __future__ import annotations

import pytest

from trainer.errors import KilnError
from trainer.lora_files.prompt_tags import parse_prompt
from trainer.lora_files.strengths import BlockWeights, parse_schedule, parse_sweep

LAYERS = [f"diffusion_model.blocks.{i}.{part}" for i in (0, 9, 10, 29) for part in ("self_attn.q", "ffn.0")]


def test_block_weights_multiply() -> None:
    blocks = BlockWeights.parse("0-9:0.5, 10-29:1, self_attn:0\n29: 3")
    found = [blocks.of(layer) for layer in LAYERS]
    assert found == [0, 0.5, 0, 0.5, 0, 1, 0, 3]
    blocks.check(LAYERS)
    assert BlockWeights.parse("").of(LAYERS[0]) == 1
    assert BlockWeights.parse("1:0").of("diffusion_model.blocks.10.ffn.0") == 1, "block 1 is not block 10"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0, 0.5..0.9:0.1", [0, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("1", [1]),
        ("0..1:0.25", [0, 0.25, 0.5, 0.75, 1]),
        ("-0.5, 0..0.25", [-0.5, 0, 0.1, 0.2]),
    ],
)
def test_sweep(text: str, values: list[float]) -> None:
    assert parse_sweep(text) == pytest.approx(values)


def test_schedule() -> None:
    assert parse_schedule("") == []
    assert parse_schedule("0.8:0.5, 0.3:1") == [(0.0, 1.0), (0.3, 1.0), (0.8, 0.5)]
    assert parse_schedule("0:0\n0.3:1") == [(0.0, 0.0), (0.3, 1.0)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BlockWeights.parse("0-9"), "'0-9' in block_weights has no factor"),
        (lambda: BlockWeights.parse("0-9:much"), "'much' in block_weights is not a number"),
        (
            lambda: BlockWeights.parse("30-40:1").check(LAYERS),
            "'30-40' .* fits no layer of the LoRA; it has blocks 0-29",
        ),
        (lambda: parse_sweep(""), "gives 0 values; 1 to 64 are possible"),
        (lambda: parse_sweep("0..1:0.001"), "makes 1001 values; 64 is the most"),
        (lambda: parse_sweep("1..0:0.1"), "goes nowhere"),
        (lambda: parse_sweep("a"), "'a' in strengths is not a number"),
        (lambda: parse_schedule("0.3"), "'0.3' in schedule has no factor"),
        (lambda: parse_schedule("1.3:1"), "1.3 in schedule lies outside 0-1"),
        (lambda: parse_prompt("<lora:x:strong>"), "'strong' in <lora:x> is not a number"),
        (
            lambda: parse_prompt("a <lora:x:1:2:3> b"),
            "'<lora:x:1:2:3>' in the prompt cannot be read; write <lora:",
        ),
        (lambda: parse_prompt("<lora::1>"), "'<lora::1>' in the prompt cannot be read"),
        (lambda: parse_prompt("a <lora:x:1"), "'<lora:x:1' in the prompt cannot be read"),
        (lambda: parse_prompt("lora_weight=much"), "'lora_weight=much' in the prompt cannot be read"),
        (lambda: parse_prompt("<lora:x:inf>"), "'inf' in <lora:x> is not a number"),
        (lambda: parse_sweep("nan"), "'nan' in strengths is not a number"),
        (lambda: parse_sweep("0..inf"), "'inf' in strengths is not a number"),
        (lambda: parse_sweep("0..1:1e-320"), "64 is the most"),
        (lambda: BlockWeights.parse("ffn:nan"), "'nan' in block_weights is not a number"),
        (lambda: parse_schedule("0:nan"), "'nan' in schedule is not a number"),
    ],
)
def test_what_is_wrong_is_said(call, message: str) -> None:
    with pytest.raises(KilnError, match=message):
        call()
