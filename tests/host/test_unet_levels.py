"""Memory levels on the host's UNets: the same step at every level, with less memory, as planned."""

from __future__ import annotations

from typing import Any

import pytest

from .in_host import run_in_host

NAMES = ("SD 1.5", "SDXL")
STREAMED = ("stream blocks", "stream from file")


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run_in_host("unet_levels.py")


@pytest.mark.parametrize("name", NAMES)
def test_nearly_all_weights_are_in_blocks(figures: dict[str, Any], name: str) -> None:
    found = figures[name]
    assert found["blocks"] == {"SD 1.5": 44, "SDXL": 49}[name]
    assert found["share"] > 0.95
    assert found["largest"] < 0.06 * found["whole"]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_same_at_every_level(figures: dict[str, Any], name: str) -> None:
    levels = figures[name]["levels"]
    assert len(levels) == 6 and all(level["error"] == 0.0 for level in levels.values())


@pytest.mark.parametrize("name", NAMES)
def test_two_blocks_and_the_rest_are_held(figures: dict[str, Any], name: str) -> None:
    found = figures[name]
    for level in STREAMED:
        peak = found["levels"][level]["peak"]
        assert peak == 2 * found["largest"] + found["outside"] < 0.2 * found["whole"]


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_blocks_keep_little(figures: dict[str, Any], name: str) -> None:
    """Were nothing recomputed, the forward would keep as much as the resident one."""
    found = figures[name]
    for level, sizes in found["levels"].items():
        assert sizes["kept"] < (0.06 if "offload" in level else 0.15) * found["kept"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recomputed_block_knows_its_place(figures: dict[str, Any], name: str) -> None:
    """Patches of other nodes go by the block that the options name, which all blocks share."""
    found = figures[name]
    assert found["effect of patches"] > 0.1, "a patch without effect would prove nothing"
    assert set(found["patched"].values()) == set(found["cast"].values()) == {0.0}


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_what_the_step_needs(figures: dict[str, Any], name: str) -> None:
    found = figures[name]
    planned, recomputed = found["planned"], found["levels"]["checkpoint activations"]
    assert 0.8 < planned["resident"]["activations"] / found["kept"] < 1.25
    needs = recomputed["kept"] + recomputed["block"]
    assert 0.8 < planned["checkpoint activations"]["activations"] / needs < 1.25
    for level in STREAMED:
        assert planned[level]["weights"] == found["levels"][level]["peak"]
    assert found["foreseen"] == planned, "from the file's header, before anything is loaded"
