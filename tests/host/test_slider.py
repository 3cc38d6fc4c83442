"""A slider through the graph: words and what a sampler draws, trained, swept from -1 to 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from scripts.host import RunningHost

from .conftest import GraphFailed, RunGraph
from .graphs import Prompt, loaders, node, sampled_files, sampling, saved, training

WORDS = {"target": "a shape", "positive": "a red shape", "negative": "a blue shape"}


def graph(latent: list[Any] | None = None, **words: Any) -> Prompt:
    """The model draws, the slider trains three steps."""
    prompt = {**loaders(), **sampling("drawn", ["model", 0]), **training(steps=3, batch_size=2), **saved()}
    given = {**WORDS, "preserve": "circle\nsquare", "guidance": 1.0, **words}
    prompt["encoded"] = node(
        "KilnSliderTargets", clip=["clip", 0], latent=latent or ["drawn sampler", 0], **given
    )
    return prompt


def test_it_trains_is_swept_and_says_what_it_is(run_graph: RunGraph, host: RunningHost) -> None:
    prompt = graph()
    prompt["sweep"] = node("KilnWeightSweep", model=["model", 0], lora=["train", 0], strengths="-1, 1")
    prompt |= sampling("swept", ["sweep", 0], batch=1)
    outputs = run_graph(prompt)
    with safe_open(Path(outputs["save"]["path"][0]), "pt") as opened:
        said = opened.metadata()["lora_kiln.slider"]
        assert any(bool(opened.get_tensor(key).any()) for key in list(opened.keys()) if "lora_B" in key)
    assert said == "a shape: a blue shape .. a red shape, keeping circle | square"
    low, high = sampled_files(host, outputs, "swept")
    assert low != high


def test_its_attribute_moves_monotonically_over_five_strengths(
    run_graph: RunGraph, host: RunningHost
) -> None:
    """The background of what is drawn, from black to white by way of the gray that is asked for."""
    ends = {end: f"green on a {end} background" for end in ("black", "gray", "white")}
    prompt = graph(
        target=ends["gray"], positive=ends["white"], negative=ends["black"], preserve="circle\nsquare"
    )
    prompt["train"]["inputs"] |= {"steps": 40, "batch_size": 4, "rank": 8, "alpha": 8.0}
    prompt |= sampling("drawn", ["model", 0], batch=4, steps=8, text=ends["gray"])
    strengths = "-1, -0.5, 0, 0.5, 1"
    prompt["sweep"] = node("KilnWeightSweep", model=["model", 0], lora=["train", 0], strengths=strengths)
    drawn = "a green circle on a gray background"
    prompt |= sampling("swept", ["sweep", 0], batch=PICTURES, steps=8, text=drawn)
    values = [rim_brightness(pixels) for pixels in sampled_files(host, run_graph(prompt), "swept")]
    found = [float(np.mean(values[i : i + PICTURES])) for i in range(0, len(values), PICTURES)]
    assert len(found) == 5 and found == sorted(found), found
    assert min(np.diff(found)) > LEAST_STEP, found


PICTURES = 3  # at each strength
LEAST_STEP = 8.0  # of 255, from one strength to the next


def rim_brightness(pixels: bytes) -> float:
    """Mean of a picture's outermost pixels, 0-255: its background."""
    picture = np.frombuffer(pixels, np.uint8).reshape(64, 64, 3)
    return float(np.mean([picture[0], picture[-1], picture[:, 0], picture[:, -1]]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"target": " "}, "target is empty; a slider needs words"),
        ({"negative": "a red  shape"}, "positive and negative are both 'a red shape'"),
        ({"latent": ["drawn empty", 0]}, "latent is an empty latent"),
    ],
)
def test_what_it_cannot_use_is_refused(run_graph: RunGraph, words: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphFailed, match=message):
        run_graph(graph(**words))
