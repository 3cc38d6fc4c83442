"""The memory estimate that the canvas asks for before a run is the one that the run then makes."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.host import RunningHost
from scripts.host_client import EventStream, HostClient, HostError

from .conftest import RunGraph
from .graphs import dataset, loaders, saved, training


def question(**changes: Any) -> dict[str, Any]:
    return {
        "loader": "UNETLoader",
        "file": "tiny_wan.safetensors",
        "weight_dtype": "default",
        "config": {"batch_size": 4, "adapter": {"rank": 4, "alpha": 4.0}},
        "resolution": 64,
        "max_frames": 1,
        **changes,
    }


def ask(client: HostClient, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.post_json("/lora_kiln/estimate", question(**changes))
    return found


def test_it_is_the_plan_of_the_run(client: HostClient, events: EventStream, run_graph: RunGraph) -> None:
    big = {"batch_size": 256, "rank": 128}  # enough to show in GiB
    client.queue_prompt({**loaders(), **dataset(), **training(steps=1000, seed=401, **big), **saved()})
    event = events.wait_for(lambda e: e.type == "lora_kiln.run" and e.data["plan"])
    client.post_json(f"/lora_kiln/runs/{event.data['run']}/stop", {})
    found = ask(client, config={"batch_size": 256, "adapter": {"rank": 128, "alpha": 4.0}})
    planned = event.data["plan"]
    assert (planned["total"], planned["parts"]) == (found["total"], found["parts"])
    assert f"at memory level {planned['level']}" in found["sentence"]
    assert found["parts"]["activations"] > 2**28


def test_it_follows_the_settings(client: HostClient) -> None:
    plain, wide, large = (
        ask(client),
        ask(client, config={"adapter": {"rank": 8}, "batch_size": 4}),
        ask(client, resolution=128),
    )
    assert wide["parts"]["adapter"] == 2 * plain["parts"]["adapter"]
    assert large["parts"]["activations"] == 4 * plain["parts"]["activations"]
    assert ask(client, max_frames=5)["parts"]["activations"] == 2 * plain["parts"]["activations"]
    assert ask(client, weight_dtype="fp8_e4m3fn")["parts"]["weights"] < plain["parts"]["weights"]
    assert sum(plain["parts"].values()) == plain["total"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file": "../../../etc/passwd"}, "lists no model file"),
        ({"loader": "LoadAnything"}, "LoadAnything"),
        ({"config": {"steps": 0}}, "steps"),
        ({"config": {"speed": 1}}, "Unknown setting"),
        ({"config": {"adapter": {"rank": "x"}}}, "rank"),
        ({"resolution": "64"}, "resolution is not a int"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"more": 1}, "JSON object with loader"),
    ],
)
def test_wrong_questions_get_a_sentence(client: HostClient, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HostError, match=rf"status 400.*{sentence}"):
        ask(client, **changes)


def test_a_file_that_is_no_network(client: HostClient, host: RunningHost) -> None:
    (host.base / "models" / "diffusion_models" / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(HostError, match=r"status 400.*broken"):
        ask(client, file="broken.safetensors")
