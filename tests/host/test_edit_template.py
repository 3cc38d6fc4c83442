"""The templates that train an edit, from a folder of pairs to a run; with the tiny Wan, which looks at no reference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scripts.edit_template import EDITS, SIDE, Edit
from scripts.host import RunningHost
from scripts.host_client import HostClient
from scripts.host_files import REPO
from scripts.workflow_graph import to_prompt

from .conftest import RunGraph
from .graphs import loaders

TINY = {"UNETLoader": "model", "DualCLIPLoader": "clip", "CLIPLoader": "clip", "VAELoader": "vae"}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.title)
def test_pairs_become_references_and_targets(
    client: HostClient, run_graph: RunGraph, host: RunningHost, edit: Edit
) -> None:
    for place, colour in (("my_edits", 60), ("my_edits_before", 0)):
        folder = host.base / "input" / place
        folder.mkdir(exist_ok=True)
        for number in range(3):
            pixels = np.full((SIDE, SIDE, 3), colour * (number + 1), np.uint8)
            Image.fromarray(pixels).save(folder / f"pair_{number}.png")
            if place == "my_edits":
                (folder / f"pair_{number}.txt").write_text("a red circle", "utf-8")
    workflow = json.loads((REPO / "workflows" / f"{edit.title}.json").read_text("utf-8"))
    prompt = to_prompt(workflow, client.object_info())
    kinds = {node["class_type"]: key for key, node in prompt.items()}
    tiny = {prompt_id: TINY[kind] for kind, prompt_id in kinds.items() if kind in TINY}
    wanted = graph_before(prompt, kinds["KilnSaveLora"], tiny) | loaders()
    train = wanted[kinds["KilnTrainLora"]]["inputs"]
    train.update(preset="custom", steps=2, rank=2, alpha=2.0)
    encode = wanted[kinds["KilnEncodeDataset"]]["inputs"]
    assert encode.get("controls", "auto") == "auto"
    encode["controls"] = "reference latents"  # what auto means for the model of the template, not for Wan
    outputs = run_graph(wanted)
    assert outputs[kinds["KilnEncodeDataset"]]["text"][0].startswith("3 items")
    assert "3 with control pictures" in outputs[kinds["KilnLoadDataset"]]["text"][0]
    lora = load_file(outputs[kinds["KilnSaveLora"]]["path"][0])
    assert lora and all(torch.isfinite(t).all() for t in lora.values())


def graph_before(prompt: dict[str, Any], last: str, others: dict[str, str]) -> dict[str, Any]:
    """The nodes that one node needs; links to some nodes go to others of that name instead."""
    found: dict[str, Any] = {}
    waiting = [last]
    while waiting:
        key = waiting.pop()
        node = json.loads(json.dumps(prompt[key]))
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in others:
                node["inputs"][name] = [others[value[0]], 0]
            elif isinstance(value, list):
                waiting.append(value[0])
        found[key] = node
    return found
