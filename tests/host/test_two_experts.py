"""Two experts of one model on a live server: samples by both in turn, a pair of files, and ranges that do not meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.host import RunningHost
from scripts.host_client import EventStream

from .conftest import RunGraph
from .graphs import dataset, loaders, node, training
from .test_samples import pixels, sample_folder, sample_settings

STEPS, TURN = 4, 3  # with shift 5 the levels are 1, 0.94, 0.83, 0.63


def objective(low: float, high: float, **inputs: Any) -> dict[str, Any]:
    values = {"timestep_sampling": "auto", "shift": 0.0, "min_timestep": low, "max_timestep": high}
    return node("KilnObjectiveSettings", **values, **inputs)


def drawn_by_hand(high: list[Any], low: list[Any]) -> dict[str, Any]:
    """What two of the host's own sampler nodes in a row draw."""
    graph: dict[str, Any] = {
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="a red circle"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "empty": node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1),
    }
    latent = ["empty", 0]
    for name, model, first in (("sample high", high, True), ("sample low", low, False)):
        switch = "enable" if first else "disable"
        graph[name] = node(
            "KSamplerAdvanced",
            **{"model": model, "positive": ["positive", 0], "negative": ["negative", 0]},
            **{"latent_image": latent, "add_noise": switch, "return_with_leftover_noise": switch},
            **{"noise_seed": 5, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"},
            start_at_step=0 if first else TURN,
            end_at_step=TURN if first else 10_000,
        )
        latent = [name, 0]
    graph["decode"] = node("VAEDecode", samples=latent, vae=["vae", 0])
    graph["drawn"] = node("SaveImage", images=["decode", 0], filename_prefix="test/experts")
    return graph


def test_both_experts_draw_and_are_saved_as_a_pair(
    host: RunningHost, run_graph: RunGraph, events: EventStream
) -> None:
    samples = sample_settings(prompts="a red circle", every=0, at_start=False, sampler_steps=STEPS)["samples"]
    samples["inputs"] |= {"settings": ["high range", 0], "other_expert": ["low model", 0]}
    low_train = training(steps=1, batch_size=1)["train"]
    low_train["inputs"] |= {"model": ["low model", 0], "settings": ["low range", 0]}
    graph = {
        **loaders(),
        **dataset(),
        "base": node("UNETLoader", unet_name="tiny_wan.safetensors", weight_dtype="default"),
        "low model": node("ModelSamplingSD3", model=["base", 0], shift=5.0),
        "high model": node("ModelSamplingSD3", model=["model", 0], shift=5.0),
        "high range": objective(0.8, 1.0, preset="custom"),
        "low range": objective(0.0, 0.7),
        "samples": samples,
        **training(steps=3, learning_rate=0.05, settings=["samples", 0]),
        "low train": low_train,
        "save": node(
            "KilnSaveLora",
            lora=["train", 0],
            lora_low_noise=["low train", 0],
            **{"filename_prefix": "test/pair", "format": "comfyui", "dtype": "fp32"},
        ),
        "apply": node("KilnApplyLora", model=["high model", 0], lora=["train", 0], strength=1.0),
        **drawn_by_hand(["apply", 0], ["low model", 0]),
    }
    graph["train"]["inputs"]["model"] = ["high model", 0]
    outputs = run_graph(graph)

    (image,) = outputs["drawn"]["images"]
    theirs = pixels(host.base / "output" / image["subfolder"] / image["filename"])
    ours = pixels(sample_folder(host, outputs) / "00000003-00.png")
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1  # rounded, not cut off
    assert np.asarray(Image.open(sample_folder(host, outputs) / "00000003-00.png")).std() > 10

    high, low = (Path(p) for p in outputs["save"]["path"])
    assert high.name.replace("high", "low") == low.name and high.is_file() and low.is_file()
    assert high.name.startswith("pair_high_noise_0")

    gap = "leave a gap: this run trains 0.8 to 1 and the other 0 to 0.7"
    events.wait_for(lambda e: e.type == "lora_kiln.run" and gap in str(e.data))
