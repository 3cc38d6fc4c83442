"""Lists that a user types: every field reads the marks of English and of Chinese keyboards."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainer.adapter.targets import choose_targets, layer_shape
from trainer.config import AdapterConfig
from trainer.dataset.resolutions import read_resolutions
from trainer.lora_files.strengths import BlockWeights, parse_schedule, parse_sweep
from trainer.parsers import split_list

MARKS = (",", "\uff0c", "\u3001", ";", "\uff1b", "\n", " ,\n")
PARTS = st.text("ab -.\u5c0f\u660e", min_size=1, max_size=5).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.lists(st.tuples(PARTS, st.sampled_from(MARKS)), max_size=6))
def test_parts_come_back_whatever_stands_between(parts: list[tuple[str, str]]) -> None:
    text = "".join(f" {part} {mark}" for part, mark in parts)
    assert split_list(text) == [part for part, _ in parts] == split_list(text.rstrip(",;\n"))


@pytest.mark.parametrize("mark", MARKS)
def test_every_field_reads_it(mark: str) -> None:
    assert read_resolutions(mark.join(("768", "1024"))) == [768, 1024]
    assert parse_sweep(mark.join(("0", "0.5..0.6:0.1"))) == [0, 0.5, 0.6]
    assert parse_schedule(mark.join(("0:0", "0.3:1"))) == [(0, 0), (0.3, 1)]
    assert BlockWeights.parse(mark.join(("0-9:0.5", "self_attn:0"))).rules == (("0-9", 0.5), ("self_attn", 0))
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({n: nn.Linear(4, 4) for n in "qkv"})])})
    assert choose_targets(network, mark.join("qv")) == ["blocks.0.q", "blocks.0.v"]
    config = AdapterConfig(rank_pattern=mark.join(("q=2", "v=3:1")))
    assert [layer_shape(f"blocks.0.{name}", config).rank for name in "qv"] == [2, 3]


def test_full_width_signs_and_digits() -> None:
    assert parse_schedule("0\uff1a0\uff0c0.3\uff1a1") == [(0, 0), (0.3, 1)]
    assert BlockWeights.parse("\uff10-\uff19\uff1a0.5").rules == (("0-9", 0.5),)
    assert read_resolutions("\uff17\uff16\uff18") == [768]
    config = AdapterConfig(rank_pattern="ffn\uff1d16\uff1a8")
    assert (layer_shape("ffn", config).rank, layer_shape("ffn", config).alpha) == (16, 8)
