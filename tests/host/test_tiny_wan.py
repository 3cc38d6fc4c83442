"""The tiny Wan draws what the caption says, through the host's ordinary loaders and KSampler."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from PIL import Image

from scripts.host import RunningHost
from tests.tiny_wan.world import BACKGROUNDS, BASE_SHAPES, COLOURS, caption, colour_accuracy, shape_accuracy

from .conftest import RunGraph
from .graphs import loaders, sampling

PROMPTS = 30


def test_colour_and_shape_are_as_told(run_graph: RunGraph, host: RunningHost) -> None:
    scenes = list(itertools.product(COLOURS, BASE_SHAPES, BACKGROUNDS))[:PROMPTS]
    graph: dict[str, Any] = loaders()
    for index, (colour, shape, background) in enumerate(scenes):
        branch = sampling(f"p{index}", ["model", 0], 1, 16, caption(shape, colour, background))
        branch[f"p{index} sampler"]["inputs"]["seed"] = index
        graph |= branch
    outputs = run_graph(graph, timeout=600)
    pictures = [
        np.asarray(Image.open(host.base / "output" / image["subfolder"] / image["filename"]).convert("RGB"))
        for index in range(len(scenes))
        for image in outputs[f"p{index}"]["images"]
    ]
    assert len(pictures) == PROMPTS
    assert colour_accuracy(pictures, [colour for colour, _, _ in scenes]) >= 0.9
    assert shape_accuracy(pictures, [shape for _, shape, _ in scenes]) >= 0.8
