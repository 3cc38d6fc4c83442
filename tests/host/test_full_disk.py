"""A disk that is full or read only under a run of the server: it says so and goes on, and the runs tab still works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.host import RunningHost
from scripts.host_client import EventStream, HostClient, failure_of
from tests.disks import fill, make_read_only, small_disk

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, saved, training
from .test_routes import newest, tell
from .test_training import wait_for_step


@pytest.fixture
def disk(host: RunningHost) -> Iterator[Path]:
    """Our own folder of the server on a disk of 8 MB."""
    folder = host.base / "user" / "__lora_kiln"
    with small_disk(folder, "8m"):
        yield folder


def test_a_run_on_a_disk_that_fills_up(client: HostClient, events: EventStream, disk: Path) -> None:
    queued = client.queue_prompt({**loaders(), **dataset(), **training(steps=100_000, seed=951), **saved()})
    wait_for_step(events, 3)
    run = newest(client)["run"]
    fill(disk)
    tell(client, run, "save")
    events.wait_for(
        lambda e: (
            e.type == "lora_kiln.run"
            and e.data["run"] == run
            and "Cannot write the checkpoint" in e.data["text"]
            and "free some disk space" in e.data["text"]
        )
    )
    tell(client, run, "finish")
    entry = client.wait(queued, timeout=300)
    assert failure_of(entry) is None, "the nodes behind get the LoRA and save it on another disk"
    assert entry["outputs"]["save"]["path"]
    assert any("own copy of the LoRA is missing" in line for line in entry["outputs"]["train"]["text"])
    (listed,) = client.get_json("/lora_kiln/history")["runs"]
    assert (listed["id"], listed["live"], listed["status"]) == (run, False, "stopped")
    assert {p.name for p in (disk / "runs" / run).iterdir()} <= {"run.toml", "dataset.json"}
    client.post_json(f"/lora_kiln/history/{run}/delete", {})
    assert client.get_json("/lora_kiln/history")["runs"] == [] and not (disk / "runs" / run).exists()


@pytest.mark.parametrize("harm", ["full", "read only"])
def test_a_run_that_cannot_begin_leaves_nothing(run_graph: RunGraph, disk: Path, harm: str) -> None:
    graph = {**loaders(), **dataset(), **training(seed=952), **saved()}
    run_graph({key: value for key, value in graph.items() if key not in ("train", "save")})  # encoded
    if harm == "full":
        fill(disk)
    else:
        make_read_only(disk)
    with pytest.raises(
        GraphFailed, match=r"node train .*lora_kiln\.KilnError: Cannot write .*check free space"
    ):
        run_graph(graph)
    assert not list(disk.glob("runs/*"))
