"""Training on a MODEL that wears a LoRA: another LoRA beside it, or the training adapter of a distilled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.host import RunningHost
from scripts.host_files import REPO

from .conftest import RunGraph
from .graphs import Prompt, dataset, loaders, node, saved, training

WAN = REPO / "tests" / "tiny_wan" / "models" / "tiny_wan.safetensors"


@pytest.fixture(scope="module")
def first(host: RunningHost) -> str:
    """A LoRA strong enough to be seen, and the tiny Wan in fp32, so that no rounding blurs what is compared."""
    weights = load_file(WAN)
    models = host.base / "models"
    save_file(
        {k: w.float() for k, w in weights.items()}, models / "diffusion_models" / "tiny_wan_fp32.safetensors"
    )
    draws = torch.Generator().manual_seed(1)
    lora = {}
    for key, weight in weights.items():
        if key.endswith((".q.weight", "ffn.0.weight")):
            layer = "diffusion_model." + key.removesuffix(".weight")
            lora[f"{layer}.lora_A.weight"] = 0.05 * torch.randn(4, weight.shape[1], generator=draws)
            lora[f"{layer}.lora_B.weight"] = 0.1 * torch.randn(len(weight), 4, generator=draws)
    (models / "loras").mkdir(exist_ok=True)
    save_file(lora, models / "loras" / "beside.safetensors")
    return "beside.safetensors"


def test_it_is_trained_on_what_the_graph_shows(run_graph: RunGraph, host: RunningHost, first: str) -> None:
    """On the model with the LoRA on, as on a file in which the LoRA is merged; the file holds the new LoRA alone."""
    merge = node(
        "KilnSaveMergedModel",
        base_name="tiny_wan_fp32.safetensors",
        lora_1=["first", 2],
        weight_1=1.0,
        filename_prefix="test/beside",
        dtype="base",
        layout="comfyui",
    )
    first_node = node("KilnLoadLora", lora_name=first, model=["model", 0], strength=0.0)
    merged = Path(run_graph({**base(), "first": first_node, "whole": merge})["whole"]["path"][0])
    name = str(merged.relative_to(host.base / "output" / "diffusion_models"))
    on = node("LoraLoaderModelOnly", model=["model", 0], lora_name=first, strength_model=1.0)
    alone = train_on(run_graph, ["model", 0])
    patched = train_on(run_graph, ["on", 0], on=on)
    from_file = train_on(
        run_graph, ["merged", 0], merged=node("UNETLoader", unet_name=name, weight_dtype="default")
    )
    assert patched.keys() == alone.keys(), "the file holds more than the new LoRA"
    for key, tensor in patched.items():
        assert (tensor - from_file[key]).norm() <= 1e-4 * tensor.norm(), key
    moved = [k for k in patched if (patched[k] - alone[k]).norm() > 1e-2 * patched[k].norm()]
    assert moved, "the LoRA that was on has made no difference"


def base() -> Prompt:
    """The loaders, with the tiny Wan in fp32."""
    return {
        **loaders(),
        "model": node("UNETLoader", unet_name="tiny_wan_fp32.safetensors", weight_dtype="default"),
    }


def train_on(run_graph: RunGraph, model: list[Any], **nodes: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that a run on that model saves."""
    train = training(steps=4)
    train["train"]["inputs"]["model"] = model
    graph = {**base(), **dataset(), **nodes, **train, **saved(filename_prefix="test/beside")}
    return load_file(run_graph(graph)["save"]["path"][0])
