"""A real ComfyUI for the tests of this folder: one server for the whole run, on the CPU, in `.work/tests/`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.host import RunningHost, start_host
from scripts.host_client import EventStream, HostClient, failure_of
from scripts.host_files import link, workspace
from trainer.temporary import temporary_path

RunGraph = Callable[..., dict[str, Any]]
MakeFolder = Callable[[str], Path]


class GraphFailed(AssertionError):
    """A graph ended in an error; the message names the node and holds the node's message."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder carries the marker `host` (pytest passes in the tests of all folders)."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.host)


UNFINISHED = (
    "output/loras/kiln",
    "output/diffusion_models",
    "user/__lora_kiln/runs/20260101-000000-aaaa",
    "user/__lora_kiln/edits/00",
    "input/uploaded/masks",
)
"""Folders in which a process that was killed has left something when the server starts."""


def leave_unfinished(base: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = f"-{os.getpid():x}-"
    for folder in UNFINISHED:
        path = temporary_path(base / folder / "x.safetensors")
        path = path.with_name(path.name.replace(mine, f"-{ended.pid:x}-"))
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 1000)


@pytest.fixture(scope="session")
def host() -> Iterator[RunningHost]:
    """The server. Its workspace starts empty, apart from the pack, the tiny Wan and the concept images."""
    base = workspace("tests", fresh=True)
    link(Path(__file__).parent / "probe_pack", base / "custom_nodes" / "kiln_probe")
    leave_unfinished(base)
    with start_host(base, python=Path(sys.executable), cpu=True) as running:
        yield running


@pytest.fixture(scope="session")
def client(host: RunningHost) -> HostClient:
    """Talks to the server."""
    return HostClient(host.url)


@pytest.fixture
def events(client: HostClient) -> Iterator[EventStream]:
    """What the server sends to `client` while the test runs."""
    with client.events() as stream:
        yield stream


@pytest.fixture
def run_graph(client: HostClient) -> RunGraph:
    """Run a graph in API format and return its outputs by node id; raise GraphFailed when a node fails."""

    def run(prompt: dict[str, Any], timeout: float = 600.0) -> dict[str, Any]:
        entry = client.wait(client.queue_prompt(prompt), timeout)
        failure = failure_of(entry)
        if failure is not None:
            raise GraphFailed(failure)
        outputs: dict[str, Any] = entry["outputs"]
        return outputs

    return run


@pytest.fixture
def make_folder(host: RunningHost) -> MakeFolder:
    """Makes an empty folder under ComfyUI/input."""

    def make(name: str) -> Path:
        folder = host.base / "input" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    return make
