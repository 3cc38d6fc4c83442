"""Control pictures and first frames on a live server: what the model takes trains, what it cannot use is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from scripts.host import RunningHost
from tests.media import clip

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, node, saved, training


@pytest.fixture(scope="module")
def folders(host: RunningHost) -> Path:
    """Edits with their pictures before, and clips."""
    base = host.base / "input"
    for number, colour in enumerate(("red", "blue")):
        for place, shown in (("given_edits", colour), ("given_before", "white")):
            (base / place).mkdir(exist_ok=True)
            Image.new("RGB", (64, 64), shown).save(base / place / f"{number}.png")
        (base / "given_edits" / f"{number}.txt").write_text(f"make it {colour}", "utf-8")
        clip(base / "given_clips" / f"{number}.mp4", frames=9, size=(64, 64))
        (base / "given_clips" / f"{number}.txt").write_text("it grows brighter", "utf-8")
    return base


def test_an_edit_is_trained_from_two_folders(run_graph: RunGraph, folders: Path) -> None:
    graph = {
        **loaders(),
        **dataset("given_edits", control_folders="given_before\uff0c"),
        **training(),
        **saved(),
    }
    graph["encoded"]["inputs"]["controls"] = "reference latents"
    outputs = run_graph(graph)
    assert "2 with control pictures" in outputs["dataset"]["text"][0]
    assert load_file(outputs["save"]["path"][0])
    Image.new("RGB", (64, 64), "black").save(folders / "given_before" / "1.png")
    assert "1 of 6 encoded now" in run_graph(graph)["encoded"]["text"][0], "a changed control picture alone"


def test_a_control_folder_within_the_dataset(run_graph: RunGraph, folders: Path) -> None:
    """Whatever recursive is, and whether the node is told the folder or a table names the pictures."""
    nested = folders / "given_nested"
    shutil.copytree(folders / "given_edits", nested)
    shutil.copytree(folders / "given_before", nested / "before")
    for recursive in (False, True):
        graph = loaders() | dataset(
            "given_nested", recursive=recursive, control_folders="given_nested/before"
        )
        graph["encoded"]["inputs"]["controls"] = "reference latents"
        outputs = run_graph(graph)
        assert "2 with control pictures" in (text := outputs["dataset"]["text"][0]) and "note" not in text
        assert "2 items" in outputs["encoded"]["text"][0]
    graph["dataset"]["inputs"]["control_folders"] = ""
    rows = [{"file_name": f"{n}.png", "text": f"item {n}", "Control_Path": f"before/{n}.png"} for n in (0, 1)]
    (nested / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    outputs = run_graph(graph)
    assert "2 images" in (text := outputs["dataset"]["text"][0]) and "2 with control pictures" in text
    graph["dataset"]["inputs"]["recursive"] = False
    run_graph(graph)
    Image.new("RGB", (96, 64), "green").save(nested / "before" / "1.png")
    outputs = run_graph(graph)
    assert "1 of 6 encoded now" in outputs["encoded"]["text"][0], "the replaced picture alone"
    assert "2 with control pictures" in outputs["dataset"]["text"][0], "the node has looked again"


def test_a_first_frame_for_a_text_to_video_model_is_refused(run_graph: RunGraph, folders: Path) -> None:
    graph = {**loaders(), **dataset("given_clips"), **training(), **saved()}
    graph["encoded"]["inputs"]["first_frame"] = "first frame"
    with pytest.raises(GraphFailed, match="makes no use of concat_latent_image"):
        run_graph(graph)


def test_a_control_folder_outside_the_input_folder_is_refused(run_graph: RunGraph, folders: Path) -> None:
    graph = {
        **loaders(),
        **dataset("given_edits", control_folders="../models"),
        "look": node("PreviewAny", source=["dataset", 0]),
    }
    with pytest.raises(GraphFailed, match="lies outside ComfyUI/input"):
        run_graph(graph)
