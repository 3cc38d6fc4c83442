"""The host starts with the pack in it, and the helpers of scripts/ work on it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from scripts.host import RunningHost
from scripts.host_client import EventStream, HostClient, HostError, decode_binary

from .conftest import UNFINISHED


def own_tracebacks(log: str) -> list[str]:
    """The tracebacks in a log, except those of the host's own extra nodes.

    kornia, spandrel and torchaudio are left out of the environment, so a few of comfy_extras/ do not import.
    """
    parts = log.split("Traceback (most recent call last)")[1:]
    culprits = [re.search(r"Cannot import (\S+)", part) for part in parts]
    pairs = zip(parts, culprits, strict=True)
    return [part for part, culprit in pairs if culprit is None or "comfy_extras" not in culprit.group(1)]


def image_graph(**save: Any) -> dict[str, Any]:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 255},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "start", **save}},
    }


def test_the_server_knows_its_nodes(client: HostClient) -> None:
    assert "UNETLoader" in client.object_info()
    assert client.object_info("SaveImage")["SaveImage"]["output_node"] is True


def test_nothing_of_ours_failed_to_load(host: RunningHost) -> None:
    log, started, _ = host.read_log().partition("To see the GUI go to")  # later lines belong to other tests
    assert started
    assert own_tracebacks(log) == []
    assert not re.search(r"\(IMPORT FAILED\)|Cannot import \S*custom_nodes|comfy_entrypoint in", log), log


def test_what_a_killed_process_has_left_goes_at_the_start(host: RunningHost) -> None:
    deadline = time.monotonic() + 300
    while "Unfinished files of ended processes" not in host.read_log():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [p for folder in UNFINISHED for p in (host.base / folder).glob(".*")] == []


def test_a_graph_runs_and_its_events_arrive(
    client: HostClient, events: EventStream, run_graph: Callable[..., dict[str, Any]]
) -> None:
    outputs = run_graph(image_graph())
    (image,) = outputs["2"]["images"]
    assert client.view(**image).startswith(b"\x89PNG")
    done = events.wait_for(lambda event: event.type == "executing" and event.data["node"] is None)
    assert events.of_type("execution_start")[0].time <= done.time
    assert {event.data["node"] for event in events.of_type("executed")} == {"2"}


def test_a_graph_that_is_not_valid_is_refused(client: HostClient) -> None:
    with pytest.raises(HostError, match="required_input_missing"):
        client.queue_prompt({"2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}})


def test_a_failing_node_is_named(run_graph: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(AssertionError, match=r"node 2 \(SaveImage\)"):
        run_graph(image_graph(filename_prefix="../../outside"))


def test_text_messages_are_decoded() -> None:
    message = b"\x00\x00\x00\x03" + b"\x00\x00\x00\x03" + b"3:1" + b"step 5"
    assert decode_binary(message) == ("text", {"node": "3:1", "text": "step 5"})
