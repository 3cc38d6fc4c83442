"""Samples during a run on a live server: they change nothing, tell the graph, and can be asked for over HTTP."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from scripts.host import RunningHost, start_host
from scripts.host_client import EventStream, HostClient, HostError, failure_of
from scripts.host_files import workspace

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, node, sampled_files, sampling, saved, training
from .test_routes import newest, tell
from .test_training import wait_for_step


def sample_settings(**options: Any) -> dict[str, Any]:
    values = {
        "prompts": "a red circle\na blue square",
        "negative_prompt": "",
        "every": 4,
        "at_start": True,
        "width": 64,
        "height": 64,
        "length": 1,
        "fps": 16.0,
        "sampler_steps": 4,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "sample_seed": 5,
        "pictures": 1,
        "strength": 1.0,
        **options,
    }
    return {"samples": node("KilnSampleSettings", clip=["clip", 0], vae=["vae", 0], **values)}


def trained(settings: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    graph = {**loaders(), **dataset(), **training(**options), **saved(), **(settings or {})}
    if settings:
        graph["train"]["inputs"]["settings"] = ["samples", 0]
    return graph


def same_loras(first: dict[str, Any], second: dict[str, Any]) -> bool:
    a, b = (load_file(outputs["save"]["path"][0]) for outputs in (first, second))
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def sample_folder(host: RunningHost, outputs: dict[str, Any]) -> Path:
    run = outputs["train"]["summary"][0]["run"]
    return host.base / "user" / "__lora_kiln" / "runs" / run / "samples"


def pixels(path: Path | io.BytesIO) -> bytes:
    return Image.open(path).convert("RGB").tobytes()


def test_the_lora_is_bit_identical_and_the_pictures_are_the_samplers(
    host: RunningHost, client: HostClient, run_graph: RunGraph
) -> None:
    options = {"steps": 10, "seed": 301, "learning_rate": 0.02}
    plain = run_graph(trained(**options))
    workflow = {"nodes": [], "extra": {"mark": 78}}
    graph = trained(sample_settings(), **options)
    entry = client.wait(client.queue_prompt(graph, {"extra_pnginfo": {"workflow": workflow}}))
    assert failure_of(entry) is None
    drawn = entry["outputs"]
    assert same_loras(plain, drawn)
    folder = sample_folder(host, drawn)
    names = [f"{step:08d}-{place:02d}.png" for step in (0, 4, 8, 10) for place in (0, 1)]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert Image.open(folder / names[0]).size == (64, 64)
    assert json.loads(Image.open(folder / names[0]).text["workflow"]) == workflow  # type: ignore[attr-defined]

    # What the host's own nodes draw with the model, and with the LoRA's file
    after = {
        **loaders(),
        **sampling("base", ["model", 0], batch=1),
        "on": node("KilnApplyLora", model=["model", 0], lora=["lora", 2], strength=1.0),
        "lora": node(
            "KilnRunHistory", filter=folder.parent.name, order="newest", place=1, rating=0, notes=""
        ),
        **sampling("tuned", ["on", 0], batch=1),
    }
    outputs = run_graph(after)
    for name, step in (("base", 0), ("tuned", 10)):
        (image,) = outputs[name]["images"]
        theirs = pixels(host.base / "output" / image["subfolder"] / image["filename"])
        ours = pixels(folder / f"{step:08d}-00.png")
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1, name  # rounded, not cut off
    assert pixels(folder / names[0]) != pixels(folder / names[-2]), "the LoRA shows"


def test_a_video_has_a_still_and_a_moving_picture_and_the_routes_serve_them(
    host: RunningHost, client: HostClient, events: EventStream
) -> None:
    graph = trained(sample_settings(length=5, prompts="a red circle", every=0), steps=100_000, seed=302)
    queued = client.queue_prompt(graph)
    wait_for_step(events, 2)
    run = newest(client)["run"]
    assert newest(client)["draws"] is True
    tell(client, run, "sample")
    told = events.wait_for(
        lambda e: e.type == "lora_kiln.run" and len(e.data["samples"] or []) == 2 and e.data["run"] == run
    )
    start, asked = told.data["samples"]
    assert start == {"step": 0, "place": 0, "prompt": "a red circle", "animated": True}
    assert asked["step"] >= 2
    tell(client, run, "finish")
    assert failure_of(client.wait(queued, timeout=300)) is None
    state = client.get_json(f"/lora_kiln/runs/{run}")
    assert state["samples"] == [start, asked]
    still = client.request(f"/lora_kiln/runs/{run}/samples/0-0.png")
    moving = client.request(f"/lora_kiln/runs/{run}/samples/{asked['step']}-0.webp")
    assert Image.open(io.BytesIO(still)).size == (64, 64)
    assert Image.open(io.BytesIO(moving)).is_animated  # type: ignore[attr-defined] # like frames are one
    for path in (
        "1-0.png",
        "0-7.png",
        "0-0.gif",
        "..%2Fresult-0.png",
        "-1-0.png",
        "0-0.png%2F..%2F..%2Frun.toml",
    ):
        with pytest.raises(HostError, match="status 404"):
            client.request(f"/lora_kiln/runs/{run}/samples/{path}")
    with pytest.raises(HostError, match=r"status 404.*no such sample"):
        client.request(f"/lora_kiln/runs/..%2Fruns%2F{run}/samples/0-0.png")


def test_a_run_without_sample_settings_refuses_to_draw(client: HostClient, events: EventStream) -> None:
    queued = client.queue_prompt(trained(steps=100_000, seed=303))
    wait_for_step(events, 2)
    run = newest(client)["run"]
    with pytest.raises(HostError, match=r"status 409.*draws no samples; connect Sample Settings"):
        tell(client, run, "sample")
    tell(client, run, "finish")
    client.wait(queued, timeout=300)


def test_a_failing_sampler_does_not_end_the_training(
    host: RunningHost, client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    options = {"steps": 6, "seed": 304}
    plain = run_graph(trained(**options))
    graph = trained(sample_settings(), **options)
    graph["broken"] = node("ProbeBrokenVae", vae=["vae", 0])
    graph["samples"]["inputs"]["vae"] = ["broken", 0]
    outputs = run_graph(graph)
    assert same_loras(plain, outputs)
    said = [e.data["text"] for e in events.of_type("lora_kiln.run")]
    assert any("No samples at step 0 (this VAE is broken on purpose); training goes on" in t for t in said)


def test_interrupting_while_it_draws_saves_a_checkpoint(
    host: RunningHost, client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    before = run_graph({**loaders(), **sampling("before", ["model", 0])})
    graph = trained(sample_settings(sampler_steps=1000, every=3, at_start=False), steps=100_000, seed=305)
    queued = client.queue_prompt(graph)
    events.wait_for(lambda e: e.type == "text" and "drawing samples at step 3" in e.data["text"])
    client.interrupt()
    assert failure_of(client.wait(queued, timeout=300)) == "interrupted in node train (KilnTrainLora)"
    run = newest(client)
    assert run["status"] == "stopped" and run["step"] == 3
    assert [p.name for p in (host.base / "user/__lora_kiln/runs" / run["run"]).glob("step-*")] == [
        "step-00000003"
    ]
    # Nothing is left behind on the model, and the run goes on
    after = run_graph({**loaders(), **sampling("after", ["model", 0])})
    assert sampled_files(host, after, "after") == sampled_files(host, before, "before")
    rest = run_graph(trained(steps=5, seed=305, resume="latest"))
    assert rest["train"]["summary"][0]["run"] == run["run"]


def test_prompts_are_needed(run_graph: RunGraph) -> None:
    with pytest.raises(GraphFailed, match=r"samples \(KilnSampleSettings\).*prompts is empty; write what"):
        run_graph(trained(sample_settings(prompts=" \n ")))


def test_a_restarted_server_recalls_curve_and_samples() -> None:
    """Of a server of its own: what the panel of the node fetches is as before, also when the run goes on."""
    base = workspace("restarted", fresh=True)
    options = {"steps": 12, "seed": 306}
    with start_host(base, python=Path(sys.executable), cpu=True) as running:
        client = HostClient(running.url)
        client.wait(client.queue_prompt(trained(sample_settings(length=5), **options)))
        before = newest(client)
        before = client.get_json(f"/lora_kiln/runs/{before['run']}")
    assert len(before["points"]) == 12 and len(before["samples"]) == 8
    with start_host(base, python=Path(sys.executable), cpu=True) as running:
        client = HostClient(running.url)
        assert client.get_json("/lora_kiln/runs")["runs"] == []
        after = client.get_json(f"/lora_kiln/runs/{before['run']}")
        for same in ("run", "status", "step", "total", "points", "samples", "validation"):
            assert after[same] == before[same], same
        assert client.request(f"/lora_kiln/runs/{before['run']}/samples/0-1.jpg").startswith(b"\xff\xd8")
        more = trained(sample_settings(length=5), **{**options, "steps": 14}, resume="latest")
        assert failure_of(client.wait(client.queue_prompt(more))) is None
        state = client.get_json(f"/lora_kiln/runs/{before['run']}")
        assert [p[0] for p in state["points"]] == list(range(1, 15))
        assert state["points"][:12] == before["points"]
        assert sorted({s["step"] for s in state["samples"]}) == [0, 4, 8, 12, 14]
        with pytest.raises(HostError, match=r"status 404.*There is no such run"):
            client.get_json("/lora_kiln/runs/20260101-000000-abcd")
