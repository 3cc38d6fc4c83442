"""A conditioning reaches the host's networks whole, and a batch never changes an item's prediction."""

from __future__ import annotations

from typing import Any

import pytest

from .in_host import run_in_host

NAMES = ("Wan 2.1 i2v", "SDXL", "Flux", "Qwen-Image", "Z-Image", "Wan 2.2 5B i2v")
PATCHED = ("SDXL v_prediction", "SDXL x0", "SDXL eps")
UNETS = ("SDXL", *PATCHED)


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run_in_host("whole_conditioning.py")


@pytest.mark.parametrize("name", [*NAMES, *PATCHED])
def test_the_prediction_is_that_of_the_host(figures: dict[str, Any], name: str) -> None:
    """With the whole CONDITIONING, and with what the graph made the model predict."""
    found = figures[name]
    assert found["prediction"] < 1e-5
    assert name == "Z-Image" or found["without"] > 1e-3, "what is told besides would prove nothing"


@pytest.mark.parametrize("name", [*NAMES, *PATCHED])
def test_an_item_in_a_batch_is_as_alone(figures: dict[str, Any], name: str) -> None:
    assert figures[name]["alone"] < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_the_hosts(figures: dict[str, Any], name: str) -> None:
    """A UNet takes a caption of twice the length into the batch, as when sampling; elsewhere it runs in turn."""
    assert figures[name]["batches"] == ([[0, 1, 2]] if name in UNETS else [[0, 1], [2]])


def test_the_defaults_are_the_familys(figures: dict[str, Any]) -> None:
    found = {name: (figures[name]["sampling"], figures[name]["shift"]) for name in NAMES}
    assert found["Wan 2.2 5B i2v"] == found["Wan 2.1 i2v"] == found["Z-Image"] == ("logit_normal", 3.0)
    assert found["SDXL"] == ("uniform", 1.0)
    assert figures["Flux"]["by_size"] == "2, 256, 0.5, 4096, 1.15"
    assert figures["Qwen-Image"]["by_size"] == "2, 256, 0.5, 8192, 0.9"


def test_what_cannot_be_trained_is_named(figures: dict[str, Any]) -> None:
    refused = figures["refused"]
    assert "predicts an LCM's clean images with the schedule" in refused["lcm"]
    assert "predicts one image from another (img_to_img)" in refused["img_to_img"]
    assert all("connect a model that predicts noise (eps), v or x0" in text for text in refused.values())
