"""A text encoder trained on a live server: a new word is learned, and what the host's own nodes make of the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from scripts.host import RunningHost
from scripts.host_client import HostClient
from tests.tiny_wan.world import colour_of, random_scenes

from .conftest import RunGraph
from .graphs import dataset, loaders, node, sampled_files, sampling, saved, training
from .test_background import BEHIND, lora_in_loras, started
from .test_routes import wait_for
from .test_samples import pixels, sample_folder, sample_settings

WORD, FOLDER, STEPS = "blick", "kiln_new_word", 40


@pytest.fixture(scope="module")
def pictures(host: RunningHost) -> Iterator[None]:
    """Red circles on black under a word that means nothing yet: the model can draw them, but not for that word."""
    folder = host.base / "input" / FOLDER
    folder.mkdir()
    for number, scene in enumerate(random_scenes(12, 5)):
        shown = replace(scene, shape="circle", colour="red", background="black").image()
        Image.fromarray(shown).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(WORD, "utf-8")
    yield


def graph(*, with_text: bool = True, **options: Any) -> dict[str, Any]:
    values = {"steps": STEPS, "learning_rate": 1e-4, "text_encoder_learning_rate": 1e-3, **options}
    found = {**loaders(), **dataset(FOLDER, validation_share=0.25), **training(**values), **saved()}
    found["clip"] = node("ProbeWords")
    if with_text:
        found["train"]["inputs"]["clip"] = ["clip", 0]
    return found


def measured(prompt: dict[str, Any]) -> dict[str, Any]:
    """With a validation loss at the beginning and the end."""
    prompt["validation"] = node("KilnValidationSettings", every=STEPS, levels=4, patience=0, result="last")
    prompt["train"]["inputs"]["settings"] = ["validation", 0]
    return prompt


def test_a_new_word_falls_further_and_the_file_draws_it(
    host: RunningHost, run_graph: RunGraph, pictures: None
) -> None:
    without = run_graph(measured(graph(with_text=False)))["train"]["summary"][0]
    prompt = measured(graph())
    prompt |= sample_settings(prompts=WORD, every=0, at_start=False, sampler_steps=16, cfg=2.0)
    prompt["samples"]["inputs"]["settings"] = ["validation", 0]
    prompt["train"]["inputs"]["settings"] = ["samples", 0]
    outputs = run_graph(prompt)
    summary = outputs["train"]["summary"][0]
    assert summary["best_validation"] < 0.8 * without["best_validation"]

    file = Path(outputs["save"]["path"][0])
    name = str(file.relative_to(host.base / "output" / "loras"))
    lora = {"lora_name": name, "model": ["model", 0], "clip": ["clip", 0], "strength_clip": 1.0}
    after: dict[str, Any] = {**loaders(), "clip": node("ProbeWords")}
    after["host"] = node("LoraLoader", **lora, strength_model=1.0)
    after["ours"] = node("KilnLoadLora", **lora, strength=1.0)
    drawn = {}
    for which in ("host", "ours"):
        branch = sampling(f"by {which}", [which, 0], batch=1, steps=16, text=WORD)
        branch[f"by {which} sampler"]["inputs"]["cfg"] = 2.0
        for text in ("positive", "negative"):
            branch[f"by {which} {text}"]["inputs"]["clip"] = [which, 1]
        after |= branch
    found = run_graph(after)
    drawn = {which: sampled_files(host, found, f"by {which}") for which in ("host", "ours")}
    assert drawn["host"] == drawn["ours"], "the host's own loader makes the same picture of the file"

    sample = sample_folder(host, outputs) / f"{STEPS:08}-00.png"
    ours = pixels(sample)
    (image,) = found["by host"]["images"]
    theirs = pixels(host.base / "output" / image["subfolder"] / image["filename"])
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1  # rounded, not cut off

    shown = np.asarray(Image.open(sample).convert("RGB"))
    assert colour_of(shown) == "red", "of what the word means the colour is learned first"


def test_it_steps_aside_in_the_background_and_resumes(
    host: RunningHost, client: HostClient, run_graph: RunGraph, pictures: None
) -> None:
    """While another prompt encodes with the very CLIP that is trained."""
    options = {"steps": 30, "seed": 501, "learning_rate": 1e-3}
    alone = run_graph(graph(**options))
    run = started(client, run_graph(graph(**options, when_queued=BEHIND)))
    beside = {**loaders(), **sampling("beside", ["model", 0], batch=1, text=WORD), "clip": node("ProbeWords")}
    assert run_graph(beside)["beside"]["images"]
    wait_for(client, run, "done")
    a, b = (load_file(f) for f in (alone["save"]["path"][0], lora_in_loras(host, run)))
    assert a.keys() == b.keys() and any(k.startswith("text_encoders.blocks.0.fc2") for k in a)
    assert all(a[k].equal(b[k]) for k in a)

    short = run_graph(graph(**{**options, "steps": 10, "seed": 502}, checkpoint_every=10))
    more = run_graph(graph(**{**options, "steps": 12, "seed": 502}, resume="latest"))
    assert more["train"]["summary"][0]["run"] == short["train"]["summary"][0]["run"]
