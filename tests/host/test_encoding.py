"""What Encode Dataset asks of the host's own encoders."""

from __future__ import annotations

from typing import Any

import pytest

from .in_host import run_in_host


@pytest.fixture(scope="module")
def readings() -> dict[str, Any]:
    return run_in_host("captions_as_text.py", arguments=())


@pytest.mark.parametrize("name", ["SD1Tokenizer", "SDXLTokenizer", "FluxTokenizer"])
def test_brackets_in_captions_are_no_weights(readings: dict[str, Any], name: str) -> None:
    found = readings[name]
    assert found["prompt"] == [1.0, 1.1, 1.5] and found["literal"] == [1.0]
    assert found["same"] and found["taggers"], "the words are those of a prompt with escaped brackets"
    assert found["readings"] == ["literal", "", ""], "captions without brackets keep their address"


def test_where_brackets_never_meant_anything_nothing_changes(readings: dict[str, Any]) -> None:
    found = readings["QwenImageTokenizer"]
    assert found["prompt"] == found["literal"] == [1.0] and found["readings"] == ["", "", ""]
