"""The training node on a live server: it leaves the model alone, stops when told, and shares the device."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from scripts.host import RunningHost
from scripts.host_client import Event, EventStream, HostClient, failure_of

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, node, probe, sampled_files, sampling, saved, training


def probe_state(run_graph: RunGraph) -> str:
    return str(run_graph({**loaders(), **probe()})["probe"]["text"][0])


def lora_of(host: RunningHost, outputs: dict[str, Any]) -> Path:
    path = Path(outputs["save"]["path"][0])
    assert path.is_relative_to(host.base / "output" / "loras")
    return path


def test_trains_saves_and_leaves_the_model_alone(host: RunningHost, run_graph: RunGraph) -> None:
    before = probe_state(run_graph)
    assert "comfy.model_management" in before
    outputs = run_graph({**loaders(), **dataset(), **training(), **saved(), **probe()})
    assert outputs["train"]["text"][0].startswith("done: 4 steps in")
    assert probe_state(run_graph) == before
    path = lora_of(host, outputs)
    tensors = load_file(path)
    assert len(tensors) == 2 * 4 * 10 and all(k.startswith("diffusion_model.blocks.") for k in tensors)
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["lora_kiln.config"])["steps"] == 4
    assert json.loads(metadata["prompt"])["train"]["class_type"] == "KilnTrainLora"
    assert len(metadata["lora_kiln.dataset"]) == len(metadata["lora_kiln.base_model"]) == 64


def test_workflow_travels_in_the_file(host: RunningHost, client: HostClient) -> None:
    graph = {**loaders(), **dataset(), **training(seed=3), **saved()}
    workflow = {"nodes": [], "extra": {"mark": 77}}
    entry = client.wait(client.queue_prompt(graph, {"extra_pnginfo": {"workflow": workflow}}))
    with safe_open(lora_of(host, entry["outputs"]), "pt") as opened:
        assert json.loads(opened.metadata()["workflow"]) == workflow


def test_same_seed_same_file(host: RunningHost, run_graph: RunGraph) -> None:
    """Also across a reload of the model, with other nodes sampling the same model meanwhile."""
    graph = {**loaders(), **dataset(), **training(steps=12, seed=11), **saved()}
    alone = load_file(lora_of(host, run_graph(graph)))
    crowded = {
        **graph,
        "train": node("KilnTrainLora", **{**graph["train"]["inputs"], "preset": "standard"}),  # not cached
        **sampling("one", ["model", 0]),
        **sampling("two", ["model", 0], text="a blue square"),
    }
    together = load_file(lora_of(host, run_graph(crowded)))
    assert alone.keys() == together.keys()
    assert all(alone[k].equal(together[k]) for k in alone)


def test_sampling_beside_a_trainer_draws_the_untrained_model(
    client: HostClient, run_graph: RunGraph, host: RunningHost
) -> None:
    only = sampled_files(host, run_graph({**loaders(), **sampling("alone", ["model", 0])}), "alone")
    graph = {**loaders(), **dataset(), **training(steps=30, seed=5, learning_rate=0.05), **saved()}
    beside = run_graph({**graph, **sampling("beside", ["model", 0])})
    assert sampled_files(host, beside, "beside") == only


def test_progress_moves_on_the_node(events: EventStream, run_graph: RunGraph) -> None:
    run_graph({**loaders(), **dataset(), **training(steps=25, seed=21), **saved()})
    states = [e.data["nodes"].get("train") for e in events.of_type("progress_state")]
    bars = [s for s in states if s is not None and s["max"] == 25]
    assert bars[-1]["value"] == 25
    assert [b["value"] for b in bars] == sorted(b["value"] for b in bars)
    texts = [e.data["text"] for e in events.of_type("text") if e.data["node"] == "train"]
    assert any("loss 0." in t and "left" in t for t in texts) and texts[-1].startswith("done: 25 steps")


def wait_for_step(events: EventStream, step: int) -> None:
    def there(event: Event) -> bool:
        state = event.data["nodes"].get("train") if event.type == "progress_state" else None
        return state is not None and state["max"] > 1 and state["value"] >= step

    events.wait_for(there)


def test_interrupt_saves_leaves_the_model_alone_and_resumes(
    host: RunningHost, client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    before = probe_state(run_graph)
    graph = {**loaders(), **dataset(), **training(steps=100_000, seed=31), **saved()}
    running = client.queue_prompt(graph)
    wait_for_step(events, 3)
    assert client.get_json("/system_stats", timeout=30.0)  # responsive meanwhile
    client.interrupt()
    entry = client.wait(running, timeout=300)
    assert failure_of(entry) == "interrupted in node train (KilnTrainLora)"
    assert probe_state(run_graph) == before
    assert any("checkpoint and LoRA:" in e.data["text"] for e in events.of_type("text"))
    (checkpoint,) = sorted((host.base / "user" / "__lora_kiln" / "runs").glob("*/step-*"))[-1:]
    stopped_at = json.loads((checkpoint / "state.json").read_text("utf-8"))["step"]
    assert stopped_at >= 3

    # The next prompt works, and goes on where the interrupted run stood
    more = stopped_at + 5
    resumed = run_graph(
        {**loaders(), **dataset(), **training(steps=more, seed=31, resume="latest"), **saved()}
    )
    assert resumed["train"]["summary"][0]["steps"] == more
    assert resumed["train"]["summary"][0]["run"] == checkpoint.parent.name


def test_cancelled_when_another_node_fails(
    client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    """An error elsewhere in the prompt ends the prompt: the trainer must not live on."""
    before = probe_state(run_graph)
    graph = {
        **loaders(),
        **dataset(),
        **training(steps=100_000, seed=41),
        **saved(),
        "bad": node("KilnLoadDataset", folder="nowhere", repeats=1, recursive=False, on_bad_file="stop"),
        "bad captions": node(
            "KilnCaptionTemplate",
            dataset=["bad", 0],
            template="",
            values="",
            trigger_word="",
            missing="keep",
            seed=0,
        ),
        "bad show": node("PreviewAny", source=["bad captions", 1]),
    }
    # The trainer is started first (the host prefers asynchronous nodes), then the failing branch runs.
    failure = failure_of(client.wait(client.queue_prompt(graph), timeout=300))
    assert failure is not None and "nowhere" in failure
    assert probe_state(run_graph) == before


def test_two_trainers_in_one_prompt_take_turns(host: RunningHost, run_graph: RunGraph) -> None:
    graph = {**loaders(), **dataset(), **training(steps=6, seed=51), **saved()}
    second = {**graph["train"]["inputs"], "seed": 52}
    graph |= {
        "train2": node("KilnTrainLora", **second),
        "save2": node(
            "KilnSaveLora", lora=["train2", 0], filename_prefix="test/two", format="comfyui", dtype="fp32"
        ),
        **sampling("between", ["model", 0]),
    }
    outputs = run_graph(graph)
    first, other = load_file(outputs["save"]["path"][0]), load_file(outputs["save2"]["path"][0])
    assert first.keys() == other.keys() and not all(first[k].equal(other[k]) for k in first)
    alone = run_graph({**loaders(), **dataset(), **training(steps=6, seed=52, preset="standard"), **saved()})
    expected = load_file(alone["save"]["path"][0])
    assert all(other[k].equal(expected[k]) for k in other)


def test_error_in_training_leaves_the_model_alone(run_graph: RunGraph) -> None:
    before = probe_state(run_graph)
    graph = {**loaders(), "encoded": node("ProbeEncoded", channels=4, broken=False), **training(), **saved()}
    with pytest.raises(
        GraphFailed, match=r"train \(KilnTrainLora\).*have 4 channels and this model needs 16"
    ):
        run_graph(graph)
    assert probe_state(run_graph) == before


def test_loss_that_is_not_finite_stops_with_a_sentence(run_graph: RunGraph) -> None:
    before = probe_state(run_graph)
    graph = {**loaders(), "encoded": node("ProbeEncoded", channels=16, broken=True), **training(), **saved()}
    with pytest.raises(
        GraphFailed, match=r"The loss became nan .* at step 4, the last of 4 such steps in a row after 3 roll"
    ):
        run_graph(graph)
    assert probe_state(run_graph) == before


def test_settings_reach_the_run(host: RunningHost, run_graph: RunGraph) -> None:
    graph = {**loaders(), **dataset(), **training(seed=61), **saved()}
    graph["adapter"] = node("KilnAdapterSettings", dropout=0.1, target_modules="to_q to_k")
    graph["objective"] = node(
        "KilnObjectiveSettings",
        timestep_sampling="uniform",
        shift=5.0,
        min_timestep=0.1,
        max_timestep=0.9,
        settings=["adapter", 0],
    )
    graph["train"]["inputs"]["settings"] = ["objective", 0]
    path = lora_of(host, run_graph(graph))
    assert len(load_file(path)) == 2 * 4 * 4  # q and k of self and cross attention, A and B, 4 blocks
    with safe_open(path, "pt") as opened:
        config = json.loads(opened.metadata()["lora_kiln.config"])
    assert (
        config["objective"]["shift"] == 5.0
        and config["adapter"]["dropout"] == 0.1
        and config["adapter"]["rank"] == 4
    )


def test_length_in_epochs_and_several_resolutions(run_graph: RunGraph) -> None:
    """20 pictures at two sizes, four at a time, twice: 20 steps, whatever the widget says."""
    graph = {**loaders(), **dataset(), **training(steps=999, epochs=2, seed=61), **saved()}
    graph["encoded"]["inputs"]["more_resolutions"] = "48"
    outputs = run_graph(graph)
    assert outputs["train"]["summary"][0]["steps"] == 20
    assert "48x48: 20 items" in outputs["encoded"]["text"][0]


def test_cached_encoding_across_executions(run_graph: RunGraph) -> None:
    first = {**loaders(), **dataset(), **training(seed=71), **saved()}
    run_graph(first)
    again = {**loaders(), **dataset(on_bad_file="skip"), **training(seed=72), **saved()}
    started = time.monotonic()
    outputs = run_graph(again)
    assert "0 of 40 encoded now" in outputs["encoded"]["text"][0], time.monotonic() - started
