"""Our LoRA in the host's own nodes, and the host's files in ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.host import RunningHost
from scripts.host_client import HostClient

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, node, sampled_files, sampling, saved, training

STRENGTH = 0.7


def trained() -> dict[str, Any]:
    """A LoRA strong enough to be seen."""
    return {**loaders(), **dataset(), **training(steps=20, learning_rate=0.01, alpha=2.0, seed=101)}


def test_every_way_of_applying_draws_the_same(
    run_graph: RunGraph, host: RunningHost, client: HostClient
) -> None:
    first = run_graph({**trained(), **saved(), **sampling("base", ["model", 0])})
    name = str(Path(first["save"]["path"][0]).relative_to(host.base / "output" / "loras"))
    kohya = run_graph({**trained(), **saved(format="kohya", filename_prefix="test/kohya")})
    kohya_name = str(Path(kohya["save"]["path"][0]).relative_to(host.base / "output" / "loras"))
    both = {"model": ["model", 0], "lora": ["train", 0]}
    graph = {
        **trained(),
        "ours": node("KilnApplyLora", **both, strength=STRENGTH),
        "hosts": node("LoraModelLoader", **both, strength_model=STRENGTH),
        "file": node("KilnLoadLora", lora_name=name, model=["model", 0], strength=STRENGTH),
        "hosts file": node(
            "LoraLoaderModelOnly", lora_name=name, model=["model", 0], strength_model=STRENGTH
        ),
        "kohya file": node(
            "LoraLoaderModelOnly", lora_name=kohya_name, model=["model", 0], strength_model=STRENGTH
        ),
    }
    if "bypass" in client.object_info("LoraModelLoader")["LoraModelLoader"]["input"]["required"]:
        graph["hosts"]["inputs"]["bypass"] = False  # host 0.33
    ways = ["ours", "hosts", "file", "hosts file", "kohya file"]
    for way in ways:
        graph |= sampling(f"by {way}", [way, 0])
    outputs = run_graph(graph)
    pictures = {way: sampled_files(host, outputs, f"by {way}") for way in ways}
    assert all(pictures[way] == pictures["ours"] for way in ways)
    assert pictures["ours"] != sampled_files(host, first, "base")


def test_the_trained_model_output_is_the_lora_at_one(run_graph: RunGraph, host: RunningHost) -> None:
    apply = node("KilnApplyLora", model=["model", 0], lora=["train", 0], strength=1.0)
    outputs = run_graph(
        {**trained(), "apply": apply, **sampling("direct", ["train", 1]), **sampling("applied", ["apply", 0])}
    )
    assert sampled_files(host, outputs, "direct") == sampled_files(host, outputs, "applied")


def test_strength_zero_is_the_base_model(run_graph: RunGraph, host: RunningHost) -> None:
    off = node("KilnApplyLora", model=["model", 0], lora=["train", 0], strength=0.0)
    outputs = run_graph(
        {**trained(), "apply": off, **sampling("off", ["apply", 0]), **sampling("plain", ["model", 0])}
    )
    assert sampled_files(host, outputs, "off") == sampled_files(host, outputs, "plain")


def test_hosts_savers_and_plotters_take_our_outputs(run_graph: RunGraph, host: RunningHost) -> None:
    outputs = run_graph(
        {
            **trained(),
            "hosts save": node("SaveLoRA", lora=["train", 0], prefix="loras/by_host"),
            "hosts plot": node("LossGraphNode", loss=["train", 2], filename_prefix="loss"),
            "plot": node("KilnLossPlot", run=["train", 3]),
        }
    )
    assert list(host.base.glob("output/loras/by_host*.safetensors"))
    assert outputs["hosts plot"]["images"] and outputs["plot"]["images"]


def test_lora_of_another_model_is_refused(run_graph: RunGraph, host: RunningHost) -> None:
    import torch
    from safetensors.torch import save_file

    name = "lora_unet_down_blocks_0_attn"
    wrong = {f"{name}.lora_down.weight": torch.zeros(4, 8), f"{name}.lora_up.weight": torch.zeros(8, 4)}
    save_file(wrong, host.base / "models" / "loras" / "other_family.safetensors")
    load = node("KilnLoadLora", lora_name="other_family.safetensors", model=["model", 0], strength=1.0)
    with pytest.raises(
        GraphFailed,
        match=r"node load .*fits neither the model \(WAN21\) nor the text encoder: it is for Stable Diffusion",
    ):
        run_graph({**loaders(), "load": load, "probe": node("ProbeModel", model=["load", 0])})
    name = "diffusion_model.blocks.0.self_attn.q"
    large = {f"{name}.lora_A.weight": torch.zeros(4, 1536), f"{name}.lora_B.weight": torch.zeros(1536, 4)}
    save_file(large, host.base / "models" / "loras" / "other_family.safetensors")
    with pytest.raises(
        GraphFailed, match=r"This LoRA is for Wan 1.3B, and the model is another one \(WAN21\): .*1536 x 1536"
    ):
        run_graph({**loaders(), "load": load, "probe": node("ProbeModel", model=["load", 0])})


def test_the_node_list_offers_new_files(client: HostClient) -> None:
    names = client.object_info("KilnLoadLora")["KilnLoadLora"]["input"]["required"]["lora_name"][1]["options"]
    assert all(n.endswith(".safetensors") for n in names)
