"""Weights that the host only lends, its notes on layers, and forwards that another node has replaced."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.in_host import run_in_host


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run_in_host("lent_weights.py")


@pytest.mark.parametrize("level", ["resident", "checkpoint activations"])
def test_autograd_saves_no_lent_weight(figures: dict[str, Any], level: str) -> None:
    """With every layer of the network lending: linears without an adapter, norms, convolutions."""
    found = figures[level]
    assert found["lent"] > 100, "a lender that nobody asks proves nothing"
    assert found["error"] < 1e-5
    assert found["saved"] == 0


def test_the_clone_has_none_of_the_host_s_notes(figures: dict[str, Any]) -> None:
    assert figures["notes"] == {
        "taken over": [],
        "through the original": True,
        "own when bound": True,
        "note of a failed transfer": False,
    }


def test_a_replaced_method_trains_with_its_adapters(figures: dict[str, Any]) -> None:
    assert figures["method"] == []


@pytest.mark.parametrize("kind", ["closure", "partial"])
def test_a_function_that_holds_the_model_s_layers_is_refused(figures: dict[str, Any], kind: str) -> None:
    assert "has replaced blocks.0.cross_attn.forward by a function" in figures[kind]


def test_what_frees_memory_waits_for_the_run() -> None:
    """Host 0.33 calls reset_cast_buffers after every node; it frees what the weights of a running step lie in."""
    found = run_in_host("gate.py", arguments=())
    assert found["waits"] and all(found["waits"].values()), found
    assert found["ended"]
