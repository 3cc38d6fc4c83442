"""Training behind a prompt that has ended: others run, nothing is lost, the LoRA is the undisturbed one."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from scripts.host import RunningHost, start_host
from scripts.host_client import EventStream, HostClient, failure_of
from scripts.host_files import link, workspace
from tests.closing_test import close_at, faults, leftovers
from tests.closing_test import graph as closing_graph
from trainer.config import OptimizerConfig, field_info

from .conftest import RunGraph
from .graphs import dataset, loaders, node, sampled_files, sampling, saved, training
from .test_routes import newest, tell, wait_for
from .test_samples import sample_settings

BEHIND = "continue in background"


def behind(**options: Any) -> dict[str, Any]:
    return {**loaders(), **dataset(), **training(**{"when_queued": BEHIND, **options}), **saved()}


def started(client: HostClient, outputs: dict[str, Any]) -> str:
    """The run that this graph has begun in the background."""
    assert outputs["train"]["text"][0].startswith("Trains in the background")
    assert "save" not in outputs, "the nodes behind wait for the LoRA"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        runs = client.get_json("/lora_kiln/runs")["runs"]
        if runs and runs[-1]["status"] == "running":
            return str(runs[-1]["run"])
        time.sleep(0.05)
    raise TimeoutError("the run in the background did not begin")


def at_step(client: HostClient, run: str, step: int) -> dict[str, Any]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        state: dict[str, Any] = client.get_json(f"/lora_kiln/runs/{run}")
        if state["step"] >= step:
            return state
        time.sleep(0.02)
    raise TimeoutError(f"run {run} did not come to step {step}")


def lora_in_loras(host: RunningHost, run: str) -> Path:
    return host.base / "output" / "loras" / f"{run}.safetensors"


def same(first: Path | str, second: Path | str) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def test_ten_prompts_run_while_it_trains_and_the_lora_is_the_same(
    host: RunningHost, client: HostClient, run_graph: RunGraph
) -> None:
    options = {"steps": 150, "seed": 401, "learning_rate": 5e-3}
    alone = run_graph({**loaders(), **dataset(), **training(**options), **saved()})
    expected = sampled_files(host, run_graph({**loaders(), **sampling("check", ["model", 0])}), "check")
    lora = str(Path(alone["save"]["path"][0]).relative_to(host.base / "output" / "loras"))

    run = started(client, run_graph(behind(**options)))
    queued = []
    for seed in range(10):
        graph = {**loaders(), **sampling("check", ["model", 0], batch=1 + seed % 2)}
        if seed % 3 == 1:  # with a LoRA on the very model that is trained
            graph["on"] = node("KilnLoadLora", model=["model", 0], lora_name=lora, strength=0.8)
            graph["check sampler"]["inputs"]["model"] = ["on", 0]
        if seed % 3 == 2:  # another node that needs room: the encoders
            graph |= {**dataset(repeats=seed), "seen": node("PreviewAny", source=["encoded", 0])}
        graph["check sampler"]["inputs"]["seed"] = 1000 + seed
        queued.append(client.queue_prompt(graph))
    entries = [client.wait(q, timeout=120) for q in queued]
    assert [failure_of(e) for e in entries] == [None] * 10
    assert all(e["outputs"]["check"]["images"] for e in entries)
    during = client.get_json(f"/lora_kiln/runs/{run}")
    assert during["status"] in ("aside", "running"), "it must not have ended before the last prompt"

    state = wait_for(client, run, "done")
    assert f"LoRA: output/loras/{run}.safetensors" in state["text"]
    assert same(alone["save"]["path"][0], lora_in_loras(host, run))
    assert (
        sampled_files(host, run_graph({**loaders(), **sampling("check", ["model", 0])}), "check") == expected
    )

    # Queued again, the graph gets the LoRA without training
    again = run_graph(behind(**options))
    assert again["train"]["text"][0].startswith("done: 150 steps")
    assert same(alone["save"]["path"][0], again["save"]["path"][0])
    assert newest(client)["run"] == run


def test_interrupting_another_prompt_does_not_touch_it(
    host: RunningHost, client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    options = {"steps": 60, "seed": 402}
    alone = run_graph({**loaders(), **dataset(), **training(**options), **saved()})
    run = started(client, run_graph(behind(**options)))
    client.interrupt()  # no prompt runs: it is meant for nobody
    graph = {**loaders(), **sampling("long", ["model", 0], steps=10_000)}
    other = client.queue_prompt(graph)
    events.wait_for(lambda e: e.type == "executing" and e.data["node"] == "long sampler")
    client.interrupt()
    failure = failure_of(client.wait(other, timeout=300))
    assert failure is not None and failure.startswith("interrupted")
    wait_for(client, run, "done")
    assert same(alone["save"]["path"][0], lora_in_loras(host, run))


def test_finishing_it_does_not_touch_other_prompts(
    host: RunningHost, client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    run = started(client, run_graph(behind(steps=100_000, seed=403)))
    at_step(client, run, 3)
    queued_again = run_graph({**behind(steps=100_000, seed=403), **sampling("beside", ["model", 0])})
    assert queued_again["train"]["text"][0].startswith("This run trains in the background already")
    other = client.queue_prompt({**loaders(), **sampling("long", ["model", 0], steps=300)})
    events.wait_for(lambda e: e.type == "executing" and e.data["node"] == "long sampler")
    tell(client, run, "finish")
    assert failure_of(client.wait(other, timeout=120)) is None
    state = wait_for(client, run, "stopped")
    assert lora_in_loras(host, run).is_file() and state["text"].startswith("stopped after")
    handed_on = run_graph(behind(steps=100_000, seed=403))
    assert same(handed_on["save"]["path"][0], lora_in_loras(host, run))


def test_a_waiting_trainer_takes_its_turn_after_the_one_in_the_background(
    host: RunningHost, client: HostClient, run_graph: RunGraph
) -> None:
    """Also when its prompt had borrowed the device before: the background run must get it back, or both wait."""
    run = started(client, run_graph(behind(steps=40, seed=404)))
    graph = {**loaders(), **dataset(repeats=3), **training(steps=3, seed=405), **saved()}
    outputs = run_graph(graph)
    assert outputs["train"]["text"][0].startswith("done: 3 steps")
    assert client.get_json(f"/lora_kiln/runs/{run}")["status"] == "done"


def test_a_waiting_trainer_can_be_interrupted_before_its_turn(
    client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    run = started(client, run_graph(behind(steps=100_000, seed=406)))
    waiting = client.queue_prompt({**loaders(), **dataset(), **training(steps=3, seed=407), **saved()})
    events.wait_for(lambda e: e.type == "text" and "waiting for the run that trains" in e.data["text"])
    client.interrupt()
    assert failure_of(client.wait(waiting, timeout=300)) == "interrupted in node train (KilnTrainLora)"
    assert client.get_json(f"/lora_kiln/runs/{run}")["status"] == "running"
    tell(client, run, "finish")
    wait_for(client, run, "stopped")


def test_samples_in_the_background_change_nothing(
    host: RunningHost, client: HostClient, run_graph: RunGraph
) -> None:
    options = {"steps": 12, "seed": 408}
    alone = run_graph({**loaders(), **dataset(), **training(**options), **saved()})
    graph = {**behind(**options), **sample_settings()}
    graph["train"]["inputs"]["settings"] = ["samples", 0]
    run = started(client, run_graph(graph))
    for seed in range(3):
        check = {**loaders(), **sampling("check", ["model", 0])}
        check["check sampler"]["inputs"]["seed"] = 2000 + seed
        run_graph(check)
    state = wait_for(client, run, "done")
    assert [s["step"] for s in state["samples"]] == [0, 0, 4, 4, 8, 8, 12, 12]
    assert same(alone["save"]["path"][0], lora_in_loras(host, run))


def next_failure(client: HostClient, before: set[str]) -> dict[str, Any]:
    """A run that is not one of those before and has failed."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for run in client.get_json("/lora_kiln/runs")["runs"]:
            if run["run"] not in before and run["status"] == "failed":
                return dict(run)
        time.sleep(0.05)
    raise TimeoutError("no run failed")


def test_an_error_in_the_background_is_told_and_forgotten(client: HostClient, run_graph: RunGraph) -> None:
    graph = {
        **behind(seed=409),
        "encoded": node("ProbeEncoded", channels=16, broken=True),
        **sampling("beside", ["model", 0]),
    }
    for _ in range(2):  # queued again, it tries anew
        before = {run["run"] for run in client.get_json("/lora_kiln/runs")["runs"]}
        assert run_graph(graph)["train"]["text"][0].startswith("Trains in the background")
        assert "The loss became nan" in next_failure(client, before)["text"]


@pytest.mark.parametrize(
    ("number", "mode"),
    [(signal.SIGINT, "wait"), (signal.SIGINT, BEHIND), (signal.SIGTERM, "wait"), (signal.SIGHUP, BEHIND)],
)
def test_closing_the_host_saves_a_checkpoint(number: signal.Signals, mode: str) -> None:
    """Of a server of its own; the run is resumed there by the next one."""
    base = workspace(f"closing-{number.name}-{mode[:4]}", fresh=True)
    graph = behind(steps=100_000, seed=410, checkpoint_every=0, when_queued=mode)
    with start_host(base, python=Path(sys.executable), cpu=True) as running:
        client = HostClient(running.url)
        client.queue_prompt(graph)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            runs = client.get_json("/lora_kiln/runs")["runs"]
            if runs and runs[-1]["step"] >= 3:
                break
            time.sleep(0.05)
        running.process.send_signal(number)
        assert running.process.wait(60) in (0, -number)
    (checkpoint,) = (base / "user" / "__lora_kiln" / "runs").glob("*/step-*")
    assert int(checkpoint.name.removeprefix("step-")) >= 3
    log = running.read_log()
    assert "saving a checkpoint of the training before ComfyUI closes" in log
    assert "lora-kiln" not in log.partition("Stopped server")[2], "no trace of an error of ours"


@pytest.mark.parametrize(("number", "after"), [(signal.SIGINT, 0.03), (signal.SIGINT, 1.0)])
def test_closing_before_the_first_step_leaves_no_trace(number: signal.Signals, after: float) -> None:
    """Of a server of its own, while it loads, encodes and draws; tests/closing_test.py does it at length. What the
    prompts leave behind takes seconds to free."""
    base = workspace("closing-early", fresh=True)
    link(Path(__file__).parent / "probe_pack", base / "custom_nodes" / "kiln_probe")
    with start_host(base, python=Path(sys.executable), cpu=True) as running:
        _, status = close_at(running, number, after, {"slow": node("ProbeSlowGarbage"), **closing_graph(441)})
        assert faults(running, number, status) == []
    assert leftovers(base) == []


def test_a_second_signal_ends_at_once() -> None:
    """While the first one waits for a step that takes long; without a traceback or an abort."""
    base = workspace("closing-twice", fresh=True)
    settings = {name: field.default for name, field in field_info(OptimizerConfig).items()}
    graph = behind(steps=100_000, seed=442) | {
        "long": node("KilnOptimizerSettings", **{**settings, "gradient_accumulation": 1024})
    }
    graph["train"]["inputs"]["settings"] = ["long", 0]
    with start_host(base, python=Path(sys.executable), cpu=True) as running:
        client = HostClient(running.url)
        client.queue_prompt(graph)
        deadline = time.monotonic() + 300
        while not client.get_json("/lora_kiln/runs")["runs"] and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2.0)  # into the first step
        running.process.send_signal(signal.SIGINT)
        while "saving a checkpoint of the training" not in running.read_log() and time.monotonic() < deadline:
            time.sleep(0.05)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == -signal.SIGINT
        assert faults(running, signal.SIGINT, -signal.SIGINT) == []
