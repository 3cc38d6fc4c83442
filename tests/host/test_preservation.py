"""Differential output preservation in a graph: a class word on Caption Template changes the run, weight 0 does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from scripts.host import RunningHost

from .conftest import GraphFailed, RunGraph
from .graphs import Prompt, dataset, loaders, node, saved, training


def graph(trigger: str = "zorb", class_word: str = "", **objective: Any) -> Prompt:
    """Three steps on captions from a template."""
    prompt = {**loaders(), **dataset(), **training(steps=3), **saved()}
    prompt["captions"] = node(
        "KilnCaptionTemplate",
        dataset=["dataset", 0],
        template="{caption}",
        values="",
        trigger_word=trigger,
        missing="drop clause",
        seed=0,
        class_word=class_word,
    )
    prompt["encoded"]["inputs"]["dataset"] = ["captions", 0]
    settings = {"timestep_sampling": "auto", "shift": 0.0, "min_timestep": 0.0, "max_timestep": 1.0}
    prompt["objective"] = node("KilnObjectiveSettings", **settings, **objective)
    prompt["train"]["inputs"]["settings"] = ["objective", 0]
    return prompt


def test_the_class_word_reaches_the_run_and_weight_0_leaves_it_plain(
    run_graph: RunGraph, host: RunningHost
) -> None:
    def file(prompt: Prompt) -> Path:
        return Path(run_graph(prompt)["save"]["path"][0])

    plain = file(graph())
    kept = file(graph(class_word="circle | square"))
    off = file(graph(class_word="circle | square", preservation_weight=0.0))
    tensors = [load_file(path) for path in (plain, kept, off)]
    assert all(bool((value == tensors[0][name]).all()) for name, value in tensors[2].items())
    assert any(bool((value != tensors[0][name]).any()) for name, value in tensors[1].items())
    with safe_open(kept, "pt") as opened:
        assert opened.metadata()["lora_kiln.class_word"] == "circle | square"
    newest = max((host.base / "user" / "__lora_kiln" / "runs").iterdir(), key=lambda p: p.name)
    listed = json.loads((newest / "dataset.json").read_text("utf-8"))
    assert listed["class_word"] == "circle | square"
    assert all(len(item["class_texts"]) == 2 for item in listed["items"])


def test_a_class_without_a_trigger_word_is_refused(run_graph: RunGraph) -> None:
    try:
        run_graph(graph(trigger="", class_word="circle"))
    except GraphFailed as failure:
        assert "class_word is 'circle' and trigger_word is empty" in str(failure)
    else:
        raise AssertionError("it ran")
