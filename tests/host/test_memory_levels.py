"""Memory levels on the host's Wan: the same step at every level, patched by other nodes, and in quantised weights; and
the node on a live server."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts.host import RunningHost
from trainer.config import OptimizerConfig, field_info

from .conftest import GraphFailed, RunGraph
from .graphs import Prompt, dataset, loaders, node, saved, training
from .in_host import run_in_host

LEVELS = ("resident", "checkpoint activations", "stream blocks", "stream from file")


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run_in_host("memory_levels.py")


def test_a_compiled_block_is_one_graph_and_all_blocks_share_it() -> None:
    figures = run_in_host("compiled.py")
    assert figures["graphs"] == 2, "the first block's input needs no gradient, all others are alike"
    assert figures["error"] < 1e-4 and figures["recomputed"] < 1e-4


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_step_is_the_same_at_every_level(figures: dict[str, Any], level: str) -> None:
    assert figures[level] == figures[f"{level} offload"] == 0.0


def test_attention_and_mlp_apart_have_the_same_gradients(figures: dict[str, Any]) -> None:
    for level in LEVELS[1:3]:
        assert figures[f"{level}, parts apart"] < 1e-5


@pytest.mark.parametrize(("precision", "most"), [("fp8", 0.5), ("nf4", 2.0)])
def test_a_quantised_base_rounds_alike_at_every_level(
    figures: dict[str, Any], precision: str, most: float
) -> None:
    """The worst of all tensors: nf4 rounds 3.5 times as coarsely."""
    errors = {figures[f"{level} on {precision}"] for level in LEVELS[:3]}
    assert len(errors) == 1 and 0.001 < errors.pop() < most


def test_patches_of_other_nodes_are_trained_on(figures: dict[str, Any]) -> None:
    assert figures["effect of patches"] > 0.1, "a patch without effect would prove nothing"
    for level in LEVELS[1:3]:
        assert figures[f"patched, {level}"] == 0.0
    for level in LEVELS[:3]:
        assert figures[f"kept off, {level}"] < 1e-5
    assert figures["kept off, fp8"] < 1e-5


def test_a_patched_model_is_not_streamed_from_its_file(figures: dict[str, Any]) -> None:
    assert figures["file of a patched model"] == "None"
    assert "blocks.0.self_attn.q.weight is not the model's, which was changed" in figures["refused"]


@pytest.mark.parametrize("kind", ["fp8", "scaled fp8", "mixed precision", "packed"])
def test_quantised_models_are_trained_on_what_they_stand_for(figures: dict[str, Any], kind: str) -> None:
    assert figures[f"{kind}: effect"] > 0.01, "rounding without effect would prove nothing"
    if kind != "packed":  # whose form only its layer knows
        assert figures[f"{kind}: share in the ring"] > 0.99
    for level in LEVELS[:3]:
        # Scaled fp8: the host's layers outside the blocks scale their input, the reference has scaled weights
        assert figures[f"{kind}, {level}"] < 1e-4, level


def graph(memory: dict[str, Any], **options: Any) -> Prompt:
    values = {"base_precision": "as it is", "offload_block_inputs": False, "compile_blocks": False, **memory}
    settings = {"memory": node("KilnMemorySettings", **values)}
    return {**loaders(), **dataset(), **settings, **training(settings=["memory", 0], **options), **saved()}


def lora_of(outputs: dict[str, Any]) -> dict[str, Tensor]:
    return load_file(outputs["save"]["path"][0])


def test_every_level_of_the_node_trains_the_same(host: RunningHost, run_graph: RunGraph) -> None:
    whole = lora_of(run_graph(graph({"level": "resident"}, seed=21)))
    for level in ("auto", *LEVELS[1:]):
        found = lora_of(run_graph(graph({"level": level}, seed=21)))
        assert whole.keys() == found.keys() and all(torch.equal(whole[k], found[k]) for k in whole), level
        assert f"at memory level {level}" in host.read_log() or level == "auto"
    # The tiny model's file is in half precision, which a CPU does not compute in: the host has converted it
    assert (
        "of the model stay in RAM: they are float32 there and float16 in tiny_wan.safetensors"
        in host.read_log()
    )
    rounded = lora_of(run_graph(graph({"level": "resident", "base_precision": "fp8"}, seed=21)))
    assert any(not torch.equal(whole[k], rounded[k]) for k in whole)


def test_a_run_is_resumed_at_another_level(run_graph: RunGraph) -> None:
    constant = {
        f.name: f.default
        for f in field_info(OptimizerConfig).values()
        if f.name not in ("learning_rate", "schedule", "warmup_ratio")
    }
    optimizer = node(
        "KilnOptimizerSettings", schedule="constant", warmup_ratio=0.0, settings=["memory", 0], **constant
    )

    def train(level: str, steps: int, resume: str = "new run") -> dict[str, Tensor]:
        whole = graph({"level": level}, seed=22, steps=steps, resume=resume)
        whole["train"]["inputs"]["settings"] = ["optimizer", 0]
        return lora_of(run_graph({**whole, "optimizer": optimizer}))

    train("stream blocks", 2)
    resumed = train("resident", 4, "latest")
    whole = train("stream from file", 4)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_settings_that_do_not_go_together(run_graph: RunGraph) -> None:
    with pytest.raises(GraphFailed, match="base_precision fp8 does not go with stream from file"):
        run_graph(graph({"level": "stream from file", "base_precision": "fp8"}))
