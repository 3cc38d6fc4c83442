"""Templates open clean: nothing over anything else, every node within its step, the note in view and readable."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from scripts.host import RunningHost, start_host
from scripts.host_client import HostClient
from scripts.host_files import HOST_FRONTEND, REPO, fetch_frontend, workspace
from scripts.node_sizes import FRONTENDS, drawn_boxes

from .conftest import RESULTS

TINY = REPO / "tests" / "tiny_wan" / "workflows" / "train_then_sample_tiny.json"
TEMPLATES = [*sorted((REPO / "workflows").glob("*.json")), TINY]
BLUEPRINT = REPO / "subgraphs" / "Train a LoRA (LoRA Kiln).json"
VIEW = {"width": 1500, "height": 1000}
SMALLEST_SCALE = 0.7  # at which a note's text is read without effort
GROUPS = """() => {
    const graph = window.app.graph;
    return (graph.groups ?? graph._groups).map(g => ({title: g.title, box: [...g.boundingRect ?? g._bounding]}));
}"""
LOOK_AT = """([scale, x, y]) => {
    const view = window.app.canvas.ds;
    view.scale = scale;
    view.offset[0] = -x;
    view.offset[1] = -y;
    window.app.canvas.setDirty(true, true);
}"""


@pytest.fixture(scope="module", params=FRONTENDS)
def server(request: pytest.FixtureRequest) -> Iterator[RunningHost]:
    """One server for each frontend, those that host 0.3.75 and 0.33 bring among them."""
    root = [] if request.param == HOST_FRONTEND else ["--front-end-root", str(fetch_frontend(request.param))]
    base = workspace(f"templates-{request.param.replace('.', '-')}", fresh=True)
    with start_host(base, python=Path(sys.executable), cpu=True, extra_args=root) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["canvas", "nodes2"])
def page(request: pytest.FixtureRequest, server: RunningHost, browser: Browser) -> Iterator[Page]:
    """A page that draws in one of the two ways."""
    HostClient(server.url).post_json(
        "/settings",
        {
            "Comfy.TutorialCompleted": True,
            "Comfy.Locale": "en",
            "Comfy.Minimap.Visible": False,
            "Comfy.VueNodes.Enabled": request.param,
            "Comfy.Workflow.ShowMissingModelsWarning": False,  # its dialog would cover the canvas
        },
    )
    opened = browser.new_page(viewport=VIEW)
    opened.goto(server.url)
    opened.wait_for_function("window.app?.graph && window.app?.extensionManager")
    yield opened
    opened.close()


def open_template(page: Page, path: Path) -> None:
    page.evaluate(
        "async workflow => { await window.app.loadGraphData(workflow); }", json.loads(path.read_text("utf-8"))
    )


def note_in_view(page: Page, note: dict[str, Any]) -> str:
    """Empty, or how the note cannot be read."""
    scale, left, top = page.evaluate(
        "() => { const v = window.app.canvas.ds; return [v.scale, v.offset[0], v.offset[1]]; }"
    )
    x, y = (note["x"] + left) * scale, (note["y"] + top) * scale
    right, bottom = x + note["width"] * scale, y + note["height"] * scale
    inside = x >= 0 and y >= 0 and right <= VIEW["width"] and bottom <= VIEW["height"]
    return (
        "" if inside and scale >= SMALLEST_SCALE else f"the note is at {x:.0f}, {y:.0f} at scale {scale:.2f}"
    )


def over_each_other(boxes: list[dict[str, Any]]) -> list[str]:
    """Pairs of boxes that share more than a hair, with how much."""
    found = []
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            width = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
            height = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
            if width > 1 and height > 1:
                found.append(f"{a['type']} and {b['type']}: {width:.0f} x {height:.0f}")
    return found


def outside(box: dict[str, Any], frame: list[float]) -> bool:
    x, y, width, height = frame
    return not (
        x <= box["x"]
        and y <= box["y"]
        and box["x"] + box["width"] <= x + width + 1
        and box["y"] + box["height"] <= y + height + 1
    )


def test_what_lies_over_another_is_found() -> None:
    box = {"type": "a", "x": 0, "y": 0, "width": 100, "height": 100}
    assert over_each_other([box, {**box, "type": "b", "x": 90, "y": 95}]) == ["a and b: 10 x 5"]
    assert over_each_other([box, {**box, "type": "b", "x": 100}]) == []
    assert outside(box, [0, 0, 100, 90]) and not outside(box, [-5, -5, 120, 120])


def test_templates_open_clean(page: Page, request: pytest.FixtureRequest) -> None:
    problems = []
    name = request.node.name
    for path in TEMPLATES:
        open_template(page, path)
        boxes = drawn_boxes(page)
        note = next(b for b in boxes if b["type"] == "MarkdownNote")
        RESULTS.mkdir(exist_ok=True)
        page.screenshot(path=RESULTS / f"{name}-{path.stem}.png")
        hidden = note_in_view(page, note)
        if hidden:
            problems.append(f"{path.stem}: {hidden}")
        frames = page.evaluate(GROUPS)
        for at in range(0, int(max(b["x"] + b["width"] for b in boxes)), 1800):
            page.evaluate(LOOK_AT, [0.6, at - 100, -150])  # only what has been in view is drawn at its size
            page.wait_for_timeout(100)
        boxes = drawn_boxes(page)
        problems += [f"{path.stem}: {pair}" for pair in over_each_other(boxes)]
        for box in boxes:
            if box["type"] != "MarkdownNote" and all(outside(box, frame["box"]) for frame in frames):
                problems.append(f"{path.stem}: {box['type']} is in no step")
    assert problems == []


def test_the_template_browser_opens_at_the_note(page: Page) -> None:
    """Newer frontends fit a template into the window, and a saved workflow keeps the view that it was saved with."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("comfyui-lora-kiln").first.click()
    page.get_by_text("Compare strengths").first.click()
    page.wait_for_function(
        "() => (window.app.graph.nodes ?? window.app.graph._nodes).some(n => n.type === 'KilnWeightSweep')"
    )
    deadline = time.monotonic() + 300
    while True:
        note = next((b for b in drawn_boxes(page) if b["type"] == "MarkdownNote"), None)
        hidden = note_in_view(page, note) if note else "no note is drawn"
        if not hidden:
            break
        assert time.monotonic() < deadline, hidden
        page.wait_for_timeout(100)
    assert page.evaluate("() => window.app.graph.serialize().extra.kilnOpening ?? null") is None


def test_what_a_run_shows_covers_nothing(
    page: Page, server: RunningHost, request: pytest.FixtureRequest
) -> None:
    """Nodes grow by the texts and pictures of a run; what lies below has been kept clear."""
    workflow = json.loads(TINY.read_text("utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "KilnTrainLora":
            node["widgets_values"][1] = 3
        elif node["type"] == "EmptyHunyuanLatentVideo":
            node["widgets_values"][3] = 2
        elif node["type"] == "KSampler":
            node["widgets_values"][2] = 1
    client = HostClient(server.url)
    done = len(client.get_json("/history"))
    page.evaluate("async w => { await window.app.loadGraphData(w); window.app.queuePrompt(0); }", workflow)
    deadline = time.monotonic() + 120
    while len(client.get_json("/history")) <= done:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    page.wait_for_timeout(500)
    for at in range(0, 4000, 1300):
        page.evaluate(LOOK_AT, [0.6, at, -150])
        page.wait_for_timeout(300)
    boxes = drawn_boxes(page)
    page.screenshot(path=RESULTS / f"{request.node.name}.png")
    assert over_each_other(boxes) == []


def test_the_blueprint_opens_with_its_widgets(page: Page, server: RunningHost) -> None:
    listed = HostClient(server.url).get_json("/global_subgraphs")
    assert [b["info"]["node_pack"] for b in listed.values() if b["name"] == BLUEPRINT.stem] == [
        "custom_nodes.comfyui-lora-kiln"
    ]
    open_template(page, BLUEPRINT)
    node = page.evaluate(
        """() => {
            const [node] = window.app.graph.nodes ?? window.app.graph._nodes;
            return {
                widgets: node.widgets.map(w => [w.name.replace(/^\\d+: /, ''), w.value]),
                inputs: node.inputs.filter(i => !i.widget).map(i => i.name).sort(),
                outputs: node.outputs.map(o => o.name).sort(),
            };
        }"""
    )
    assert dict(node["widgets"]) | {"folder": "my_dataset", "trigger_word": "k1ln", "steps": 500} == dict(
        node["widgets"]
    )
    assert len(node["widgets"]) == 9
    assert (node["inputs"], node["outputs"]) == (["clip", "model", "vae"], ["lora", "model"])
