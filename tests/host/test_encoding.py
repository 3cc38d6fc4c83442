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
    assert len(found["unchanged"]) == 5 and found["same readings"] == [""] * 5, "so do escaped and lone ones"


def test_where_brackets_never_meant_anything_nothing_changes(readings: dict[str, Any]) -> None:
    found = readings["QwenImageTokenizer"]
    assert found["prompt"] == found["literal"] == [1.0] and found["readings"] == ["", "", ""]


@pytest.fixture(scope="module")
def batches() -> dict[str, Any]:
    return run_in_host("text_batches.py", arguments=())


@pytest.mark.parametrize("name", ["one encoder", "two encoders", "weights"])
def test_captions_together_are_as_alone(batches: dict[str, Any], name: str) -> None:
    """Nine captions, one of two sections: the encoders run once for all, and once for the one that is compared."""
    found = batches[name]
    assert found["error"] < 1e-5 and found["other"] > 1e-2, "captions that are mixed up would show"
    encoders = 2 if name == "two encoders" else 1
    assert found["calls_alone"] == 9 * encoders and found["calls"] <= (2 + 1) * encoders
    assert found["next_calls"] <= 2 * encoders, "compared once"


def test_an_encoder_that_mixes_a_batch_is_asked_one_by_one(batches: dict[str, Any]) -> None:
    found = batches["mixing"]
    assert found["error"] == 0 and found["calls"] > 9


def test_embeddings_are_left_to_the_host(batches: dict[str, Any]) -> None:
    assert batches["embedding"]["error"] == 0


def test_another_thread_is_not_disturbed(batches: dict[str, Any]) -> None:
    assert batches["thread"] == 0


def test_nothing_is_left_on_the_encoders(batches: dict[str, Any]) -> None:
    assert batches["left"] == []
