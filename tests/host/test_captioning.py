"""Captions by the host's own models. Host 0.3.75 has none that write text; then the node says so."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.host_client import HostClient
from tests.host.conftest import GraphFailed, MakeFolder, RunGraph
from tests.host.in_host import run_in_host
from tests.media import clip, picture

FAMILIES = {"Qwen3-VL": 4, "Qwen 3.5": 4, "Gemma 3": 1, "Gemma 4": 4}
"""How many pictures a clip of four frames is to each."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return run_in_host("captioners.py", arguments=())


def test_what_writes_nothing_about_pictures_is_refused(found: dict[str, Any]) -> None:
    if found["models"]:
        assert found["refused"].startswith("This text encoder (SD1ClipModel) does not write about pictures;")
    else:
        assert found["refused"].startswith(
            "ComfyUI 0.3.75 has no text generation; update it to 0.33 or newer"
        )
    assert found["hook stays"]


def test_every_family_writes_about_what_it_sees(found: dict[str, Any]) -> None:
    """Tiny, with random weights: another picture gives another text, the same one the same."""
    assert set(found["models"]) in (set(), set(FAMILIES)), "all, or none on a host that writes no text"
    for name, model in found["models"].items():
        still, other, again, moving = model["texts"]
        assert still == again != other and still.strip() and moving.strip(), name
        assert model["drawn"][0] == model["drawn"][2] != model["drawn"][1], f"{name}: by the seed"
        assert model["cut"] and model["seen"] == FAMILIES[name], name


def test_the_node_writes_captions(client: HostClient, run_graph: RunGraph, make_folder: MakeFolder) -> None:
    """The whole way: a folder, a model, sidecars, and what the page is told of them."""
    folder = make_folder("captioning")
    picture(folder / "a.png", caption="mine")
    picture(folder / "b.png")
    clip(folder / "c.mp4", frames=8)
    graph = _graph("captioning", trigger_word="zorb", seed=1)
    if not _generates(client):
        with pytest.raises(GraphFailed, match="has no text generation; update it"):
            run_graph(graph)
        assert not (folder / "b.txt").exists()
        return
    shown = run_graph(graph)["3"]["text"][0]
    assert shown.startswith("2 items captioned now, 1 left as they were")
    assert (folder / "a.txt").read_text("utf-8") == "mine"
    assert all((folder / name).read_text("utf-8").startswith("zorb, ") for name in ("b.txt", "c.txt"))
    answer = client.get_json("/lora_kiln/dataset/items?folder=captioning&recursive=0&also=")
    assert {item["name"]: item["by_model"] for item in answer["items"]} == {
        "a.png": [], "b.png": ["caption"], "c.mp4": ["caption"],
    }  # fmt: skip
    assert answer["undo"]["what"] == "by model" and answer["undo"]["count"] == 2
    again = run_graph(_graph("captioning", trigger_word="zorb", seed=1))["3"]["text"][0]
    assert again.startswith("0 items captioned now, 3 left as they were")
    with pytest.raises(GraphFailed, match=r"1 items have a text that you wrote .*set replace to 1"):
        run_graph(_graph("captioning", which="all", seed=2))


def _graph(folder: str, **inputs: Any) -> dict[str, Any]:
    settings = {
        "ready": "own", "write": "caption", "instruction": "say it", "trigger_word": "", "which": "without",
        "max_tokens": 16, **inputs,
    }  # fmt: skip
    load = {"folder": folder, "repeats": 1, "recursive": False, "on_bad_file": "stop"}
    return {
        "1": {"class_type": "KilnLoadDataset", "inputs": load},
        "2": {"class_type": "ProbeCaptioner", "inputs": {}},
        "3": {"class_type": "KilnCaptionDataset", "inputs": {"dataset": ["1", 0], "clip": ["2", 0], **settings}},
    }  # fmt: skip


def _generates(client: HostClient) -> bool:
    return "TextGenerate" in client.get_json("/object_info")
