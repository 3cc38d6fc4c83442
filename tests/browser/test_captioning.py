"""Caption Dataset on the canvas, and what the dataset page says of captions that a model wrote."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from scripts.host import RunningHost
from tests.media import scene
from trainer.dataset.instructions import READY
from trainer.dataset.model_marks import ModelMarks

from .conftest import NODES_2, Canvas
from .test_dataset_page import open_page, tile

ADD = """() => {
    const node = window.LiteGraph.createNode('KilnCaptionDataset');
    node.pos = [0, 0];
    window.app.graph.clear();
    window.app.graph.add(node);
    const view = window.app.canvas.ds;
    view.scale = 1;
    view.offset[0] = view.offset[1] = 200;
    window.app.canvas.setDirty(true, true);
    window.kilnWidget = name => node.widgets.find(w => w.name === name);
}"""
CHOOSE = """value => {
    const ready = window.kilnWidget('ready');
    ready.value = value;
    ready.callback(value);
}"""
SHOWN = (
    "() => Object.fromEntries(['ready', 'write', 'instruction'].map(n => [n, window.kilnWidget(n).value]))"
)


@pytest.mark.parametrize("settings", [{}, NODES_2], ids=["canvas", "nodes2"])
def test_a_ready_instruction_fills_the_widgets_that_are_asked(canvas: Canvas) -> None:
    page = canvas.page
    page.evaluate(ADD)
    for name in ("tags", "video motion"):
        page.evaluate(CHOOSE, name)
        ready = READY[name]
        assert page.evaluate(SHOWN) == {"ready": name, "write": ready.write, "instruction": ready.text}
    text = page.locator("textarea").first
    expect(text).to_have_value(ready.text)
    text.click()
    text.type(" In rhyme.")
    page.wait_for_function("() => window.kilnWidget('instruction').value.includes('In rhyme.')")
    assert page.evaluate(SHOWN)["ready"] == "own"
    canvas.shot("own")


def test_what_a_model_wrote_is_shown_until_it_is_edited(canvas: Canvas, host: RunningHost) -> None:
    folder = host.base / "input" / f"by_model_{canvas.workflow[:8]}"
    folder.mkdir()
    for name in ("a", "b"):
        scene(1, (320, 256)).save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text(f"caption of {name}", "utf-8")
    marks = ModelMarks(host.base / "user" / "__lora_kiln" / "by_model.txt")
    marks.add("a.jpg", {"caption": "caption of a"}, "0" * 16)
    page = open_page(canvas, folder)
    expect(tile(page, "a.jpg").locator(".kiln-by-model")).to_have_text("by model")
    expect(tile(page, "b.jpg").locator(".kiln-by-model")).to_have_count(0)
    page.locator("select[data-kiln=show]").select_option("model")
    expect(page.locator(".kiln-tile")).to_have_count(1)
    tile(page, "a.jpg").click()
    expect(page.locator(".kiln-detail").get_by_text("by model")).to_be_visible()
    canvas.shot("by-model")
    page.locator("textarea").fill("mine now")
    page.locator("textarea").press("Control+Enter")
    expect(page.locator(".kiln-tile")).to_have_count(0)
    page.locator("select[data-kiln=show]").select_option("all")
    expect(tile(page, "a.jpg")).to_contain_text("mine now")
    expect(tile(page, "a.jpg").locator(".kiln-by-model")).to_have_count(0)
