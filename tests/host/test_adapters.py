"""Every kind of adapter through the host's own loader: what the file does is what was trained."""

from __future__ import annotations

from typing import Any

import pytest

from .in_host import run_in_host

KEYS = {
    "lora": ["alpha", "lora_A.weight", "lora_B.weight"],
    "rslora": ["lora_A.weight", "lora_B.weight"],  # 2 / sqrt 4 = 1: no alpha is needed
    "patterns": ["alpha", "lora_A.weight", "lora_B.weight"],
    "pissa": ["alpha", "lora_A.weight", "lora_B.weight"],
    "orthogonal": ["alpha", "lora_A.weight", "lora_B.weight"],
    "dora": ["alpha", "dora_scale", "lora_A.weight", "lora_B.weight"],
    "loha": ["alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
    "lokr": ["lokr_w1", "lokr_w2_a", "lokr_w2_b"],
    "oft": ["oft_blocks"],
}


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run_in_host("adapters.py")


@pytest.mark.parametrize("kind", KEYS)
def test_the_host_draws_what_was_trained(figures: dict[str, Any], kind: str) -> None:
    found = figures[kind]
    assert found["keys"] == KEYS[kind]
    assert found["host_vs_training"] < 1e-4, found
    assert found["effect"] > 0.01, "an adapter without effect would prove nothing"
    assert found["effect_at_start"] < 1e-4, "a fresh adapter must change nothing"


def test_patterns_and_exclusion_reach_the_file(figures: dict[str, Any]) -> None:
    assert figures["patterns"]["tensors"] == 4 * (4 + 2) * 3 and figures["lora"]["tensors"] == 4 * 10 * 3


def test_training_starts_where_a_file_is(figures: dict[str, Any]) -> None:
    assert figures["start_from"]["host_vs_training"] < 1e-4
