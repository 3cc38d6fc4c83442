"""What the canvas asks and tells over HTTP while a run goes on."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from scripts.host import RunningHost
from scripts.host_client import EventStream, HostClient, HostError, failure_of

from .conftest import RunGraph
from .graphs import dataset, loaders, saved, training
from .test_training import wait_for_step


def newest(client: HostClient) -> dict[str, Any]:
    run: dict[str, Any] = client.get_json("/lora_kiln/runs")["runs"][-1]
    return run


def wait_for(client: HostClient, run: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        state: dict[str, Any] = client.get_json(f"/lora_kiln/runs/{run}")
        if state["status"] == status:
            return state
        time.sleep(0.05)
    raise TimeoutError(f"run {run} did not become {status}")


def tell(client: HostClient, run: str, command: str) -> Any:
    return client.post_json(f"/lora_kiln/runs/{run}/{command}", {})


def test_pause_save_resume_and_finish(client: HostClient, events: EventStream, host: RunningHost) -> None:
    queued = client.queue_prompt({**loaders(), **dataset(), **training(steps=100_000, seed=201), **saved()})
    wait_for_step(events, 3)
    run = newest(client)["run"]
    tell(client, run, "pause")
    paused_at = wait_for(client, run, "paused")
    time.sleep(0.5)
    first, second = (client.get_json(f"/lora_kiln/runs/{run}")["step"] for _ in range(2))
    assert first == second and first <= paused_at["step"] + 1  # the step in flight may still end
    tell(client, run, "save")
    tell(client, run, "resume")
    events.wait_for(
        lambda e: (
            e.type == "lora_kiln.run" and e.data["run"] == run and "checkpoint is saved" in e.data["text"]
        )
    )
    assert list((host.base / "user" / "__lora_kiln" / "runs" / run).glob("step-*"))
    tell(client, run, "finish")
    entry = client.wait(queued, timeout=300)
    assert failure_of(entry) is None, "finishing is not an interrupt: the nodes behind get the LoRA"
    assert entry["outputs"]["save"]["path"]
    state = client.get_json(f"/lora_kiln/runs/{run}")
    assert state["status"] == "stopped" and state["text"].startswith("stopped after")
    assert [p[0] for p in state["points"]] == list(range(1, state["step"] + 1))
    with pytest.raises(HostError, match=r"status 409.*This run has ended"):
        tell(client, run, "pause")


def test_the_points_sent_add_up_to_the_whole_curve(
    client: HostClient, events: EventStream, run_graph: RunGraph
) -> None:
    run_graph({**loaders(), **dataset(), **training(steps=40, seed=202), **saved()})
    state = newest(client)
    assert state["status"] == "done" and state["node"] == "train" and state["total"] == 40
    whole = client.get_json(f"/lora_kiln/runs/{state['run']}")["points"]
    sent = [e.data for e in events.of_type("lora_kiln.run") if e.data["run"] == state["run"]]
    assert [p for message in sent for p in message["points"]] == whole
    assert all(m["first"] == sum(len(b["points"]) for b in sent[:i]) for i, m in enumerate(sent))
    assert [p[0] for p in whole] == list(range(1, 41))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/lora_kiln/runs/unknown", "There is no such run"),
        ("/lora_kiln/runs/..%2F..%2Fetc%2Fpasswd", "There is no such run"),
    ],
)
def test_unknown_runs_are_refused(client: HostClient, path: str, sentence: str) -> None:
    with pytest.raises(HostError, match=rf"status 404.*{sentence}"):
        client.get_json(path)


def test_unknown_commands_are_refused(client: HostClient, run_graph: RunGraph) -> None:
    run_graph({**loaders(), **dataset(), **training(seed=203), **saved()})
    run = newest(client)["run"]
    with pytest.raises(
        HostError, match=r"status 404.*can be told finish, stop, pause, resume, save, sample; not 'delete'"
    ):
        tell(client, run, "delete")
    with pytest.raises(HostError, match=r"status 405|status 404"):
        client.get_json(f"/lora_kiln/runs/{run}/stop")


def test_commands_from_another_origin_are_refused(client: HostClient) -> None:
    """The host's own check: a page elsewhere must not steer a local server."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        f"{client.url}/lora_kiln/runs/x/stop", b"{}", {"Origin": "https://evil.example", "Host": "127.0.0.1"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403
    assert json.dumps(refused.value.reason)
