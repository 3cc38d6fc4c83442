"""The dataset page, as a user works with it: seeing, filtering, editing, taking out, undoing, in two tabs at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Route, expect

from scripts.host import RunningHost
from tests.media import clip, picture, scene

from .conftest import CHINESE, NODES_2, Canvas

FIND = "(window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnLoadDataset')"


@pytest.fixture
def folder(host: RunningHost, request: pytest.FixtureRequest) -> Path:
    """Ten pictures, one of them soft and one masked, and a clip."""
    made = host.base / "input" / re.sub(r"\W+", "_", request.node.name)
    made.mkdir(parents=True, exist_ok=True)
    for number in range(10):
        scene(number, (640, 512)).save(made / f"photo {number}.jpg", quality=92)
        if number != 7:
            words = ["indoors" if number % 2 else "outdoors", "at noon", f"scene {number}"]
            (made / f"photo {number}.txt").write_text(", ".join(words), "utf-8")
    scene(3, (640, 512)).resize((60, 48)).resize((640, 512)).save(made / "soft.png")
    picture(made / "masks" / "photo 2.png", (640, 512), "black")
    clip(made / "walk.mp4", frames=24, size=(320, 240), codec="mpeg4")
    (made / "notes.pdf").write_bytes(b"%PDF")
    return made


def open_page(canvas: Canvas, folder: Path) -> Locator:
    """The page of a folder, opened by the button on the node."""
    show_node(canvas, folder.name)
    canvas.page.locator("[data-kiln=openDataset]").click()
    page = canvas.page.locator("dialog.kiln-page")
    expect(page.locator("header")).to_contain_text(re.compile("without caption|\u6ca1\u6709\u63cf\u8ff0"))
    return page


def show_node(canvas: Canvas, name: str) -> None:
    canvas.page.evaluate(
        """async name => {
            const answer = await fetch('/api/workflow_templates/tiny_wan_demo/train_then_sample_tiny.json');
            await window.app.loadGraphData(await answer.json());
            const node = FIND;
            const widget = node.widgets.find(w => w.name === 'folder');
            widget.value = name;
            widget.callback?.(name);
            const view = window.app.canvas.ds;
            view.scale = 1;
            view.offset[0] = 300 - node.pos[0];
            view.offset[1] = 160 - node.pos[1];
            window.app.canvas.setDirty(true, true);
        }""".replace("FIND", FIND),
        name,
    )
    canvas.page.wait_for_selector(".kiln-strip", state="visible")


def test_the_node_and_its_page_leave_out_the_same(canvas: Canvas, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "orphan.txt").write_text("of nothing")
    picture(folder / "deep" / "a.png")
    show_node(canvas, folder.name)
    strip = canvas.page.locator(".kiln-strip .kiln-figures")
    expect(strip).to_contain_text(
        "11 images, 1 clips, 3 without caption \u00b7 2 left out \u00b7 Remarks (3)"
    )
    canvas.shot("node")
    first, *sentences = (strip.get_attribute("title") or "").split("\n")
    assert first == strip.text_content() and "broken.png cannot be read" in sentences[0]
    canvas.page.locator("[data-kiln=openDataset]").click()
    page = canvas.page.locator("dialog.kiln-page")
    expect(tile(page, "broken.png")).to_contain_text("!")
    assert page.locator("details.kiln-left li").all_text_contents() == sentences
    tile(page, "broken.png").click()
    expect(page.locator(".kiln-right-column li").first).to_contain_text("broken.png cannot be read")
    canvas.shot("page")


def test_control_pictures_are_no_items_of_the_page(canvas: Canvas, folder: Path) -> None:
    """The page is told of the node's control folders; pictures beside the items come out when they are known."""
    for path in folder.glob("photo *.jpg"):
        picture(folder / "before" / f"{path.stem}.png")
    show_node(canvas, folder.name)
    canvas.page.evaluate(
        """name => {
            const widgets = FIND.widgets;
            widgets.find(w => w.name === 'control_folders').value = name;
            widgets.find(w => w.name === 'recursive').value = true;
        }""".replace("FIND", FIND),
        f"{folder.name}/before",
    )
    canvas.page.locator("[data-kiln=openDataset]").click()
    page = canvas.page.locator("dialog.kiln-page")
    measured(page)
    expect(page.locator(".kiln-tile")).to_have_count(12)
    expect(page.locator("header")).to_contain_text("12 items")
    canvas.shot("controls")


def tile(page: Locator, name: str) -> Locator:
    return page.locator(".kiln-tile").filter(has=page.page.get_by_text(name, exact=True))


def measured(page: Locator) -> None:
    """Wait for sizes and warnings."""
    expect(page.locator(".kiln-badge").first).to_be_visible(timeout=120_000)
    expect(page.locator("details.kiln-left").first).to_be_visible(timeout=120_000)


@pytest.mark.parametrize("settings", [{}, {**CHINESE, **NODES_2}], ids=["canvas", "zh-nodes2"])
def test_items_are_seen_with_what_is_wrong(canvas: Canvas, folder: Path) -> None:
    page = open_page(canvas, folder)
    measured(page)
    expect(page.locator(".kiln-tile")).to_have_count(12)
    expect(tile(page, "photo 7.jpg")).to_have_class(re.compile("kiln-no-caption"))
    tile(page, "soft.png").click()
    expect(page.locator(".kiln-detail h3")).to_have_text("soft.png")
    expect(page.locator(".kiln-warnings li").first).to_be_visible()
    canvas.shot("soft")
    tile(page, "photo 2.jpg").click()
    page.get_by_label(re.compile("Show mask|\u663e\u793a\u906e\u7f69")).check()
    expect(page.locator(".kiln-overlay")).to_be_visible()
    canvas.page.wait_for_function("document.querySelector('.kiln-overlay').naturalWidth > 0")
    canvas.page.wait_for_timeout(300)
    canvas.shot("masked")
    tile(page, "walk.mp4").click()
    expect(page.locator(".kiln-view video, .kiln-view img").first).to_be_visible()
    page.locator("[data-kiln=closePage]").click()
    expect(page).to_have_count(0)
    canvas.page.wait_for_timeout(300)
    canvas.shot("node")


def test_a_caption_is_edited_in_place_and_undone(canvas: Canvas, folder: Path) -> None:
    page = open_page(canvas, folder)
    before = (folder / "photo 0.txt").read_text()
    tile(page, "photo 0.jpg").click()
    caption = page.locator("textarea")
    caption.fill("a red zorb")
    tile(page, "photo 7.jpg").click()
    expect(page.locator("[role=status]").first).to_have_text("Saved.")
    assert (folder / "photo 0.txt").read_text() == "a red zorb"
    caption.fill("no caption until now")
    caption.press("Control+Enter")
    expect(tile(page, "photo 7.jpg")).to_contain_text("no caption until now")
    assert (folder / "photo 7.txt").read_text() == "no caption until now"
    page.locator("[aria-label='Name of the field']").fill("lighting")
    page.locator("[aria-label='Value']").fill("neon")
    page.locator("[data-kiln=addField]").click()
    expect(page.get_by_label("Field lighting")).to_have_value("neon")
    assert json.loads((folder / "photo 7.json").read_text()) == {"lighting": "neon"}
    for now_there in ("Field lighting", "no caption until now", "a red zorb"):
        page.locator("[data-kiln=undo]").click()
        expect(page.locator("[role=status]").first).to_have_text("Taken back.")
        expect(page.get_by_label(now_there)).to_have_count(0)
    expect(tile(page, "photo 0.jpg")).to_contain_text(before)
    expect(page.locator("[data-kiln=undo]")).to_be_disabled()
    assert (folder / "photo 0.txt").read_text() == before and not (folder / "photo 7.txt").exists()


def test_many_are_changed_after_a_preview(canvas: Canvas, folder: Path) -> None:
    page = open_page(canvas, folder)
    measured(page)
    page.locator("input[type=search]").fill("indoors")
    expect(page.locator(".kiln-tile")).to_have_count(4)
    page.locator("[data-kiln=chooseAll]").click()
    page.locator("[data-kiln=operation]").select_option("addFirst")
    page.locator("[data-kiln=opText]").fill("k1ln")
    expect(page.locator(".kiln-detail")).to_contain_text("4 of 4 would change")
    expect(page.locator(".kiln-preview ins").first).to_have_text("k1ln, indoors, at noon, scene 1")
    assert "k1ln" not in (folder / "photo 1.txt").read_text(), "nothing is written before it is asked for"
    canvas.shot("preview")
    page.locator("[data-kiln=apply]").click()
    expect(page.locator("[role=status]").first).to_have_text("4 items are changed.")
    assert (folder / "photo 3.txt").read_text() == "k1ln, indoors, at noon, scene 3"
    page.locator("input[type=search]").fill("")
    page.locator("details.kiln-tags summary").click()
    page.get_by_role("button", name="k1ln 4", exact=True).click()
    expect(page.locator(".kiln-tile")).to_have_count(4)
    canvas.shot("tags")
    page.locator("[data-kiln=undo]").click()
    expect(page.locator("[role=status]").first).to_have_text("Taken back.")
    assert (folder / "photo 3.txt").read_text() == "indoors, at noon, scene 3"


def test_setting_aside_and_deleting_with_the_keyboard(canvas: Canvas, folder: Path) -> None:
    page = open_page(canvas, folder)
    grid = page.locator("[role=listbox]")
    expect(grid).to_be_focused()
    keys = canvas.page.keyboard
    keys.press("End")
    keys.press("Home")
    keys.press("Shift+ArrowRight")
    expect(page.locator(".kiln-detail h3")).to_have_text("2 items chosen")
    page.locator("[data-kiln=setAside]").focus()
    keys.press("Enter")
    expect(grid).to_be_focused()
    expect(page.locator(".kiln-tile")).to_have_count(10)
    assert sorted(p.name for p in (folder / "set_aside").glob("*.jpg")) == ["photo 0.jpg", "photo 1.jpg"]
    page.locator("[data-kiln=show]").select_option("aside")
    expect(page.locator(".kiln-tile")).to_have_count(2)
    page.locator("[data-kiln=chooseAll]").click()
    page.locator("[data-kiln=setAside]").click()
    expect(page.locator("[role=status]").first).to_have_text("2 items are back.")
    page.locator("[data-kiln=show]").select_option("all")
    expect(page.locator(".kiln-tile")).to_have_count(12)
    assert not (folder / "set_aside").exists()
    tile(page, "soft.png").click()
    page.locator("[data-kiln=deleteItem]").focus()
    keys.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    keys.press("Escape")
    assert (folder / "soft.png").exists()
    page.locator("[data-kiln=deleteItem]").focus()
    keys.press("Enter")
    keys.press("Tab")
    keys.press("Enter")
    expect(page.locator(".kiln-tile")).to_have_count(11)
    assert not (folder / "soft.png").exists()


def test_the_keys_reach_everything(canvas: Canvas, folder: Path) -> None:
    page = open_page(canvas, folder)
    keys = canvas.page.keyboard
    keys.press("Home")
    keys.press("ArrowRight")
    expect(page.locator(".kiln-detail h3")).to_have_text("photo 1.jpg")
    keys.press("Enter")
    expect(page.locator("textarea")).to_be_focused()
    keys.press("Control+A")
    keys.type("typed without a mouse")
    keys.press("Escape")
    expect(page.locator("[role=listbox]")).to_be_focused()
    expect(tile(page, "photo 1.jpg")).to_contain_text("typed without a mouse")
    keys.press("Control+A")
    expect(page.locator(".kiln-detail h3")).to_have_text("12 items chosen")
    nodes = canvas.page.evaluate("(window.app.graph.nodes ?? window.app.graph._nodes).length")
    keys.press("Delete")
    assert canvas.page.evaluate("(window.app.graph.nodes ?? window.app.graph._nodes).length") == nodes
    keys.press("Escape")
    expect(page).to_have_count(0)


def test_a_slow_server_loses_no_edit(canvas: Canvas, folder: Path) -> None:
    """What is typed while an earlier caption is on its way: for another item, for the same one, and before closing."""
    page = open_page(canvas, folder)
    status = page.locator("[role=status]").first
    held: list[Route] = []
    held_back = True

    def answer(route: Route) -> None:
        held.append(route) if held_back else route.continue_()

    canvas.page.route("**/lora_kiln/dataset/write", answer)
    caption = page.locator("textarea")
    for number, text in enumerate(("zero", "one", "two")):
        tile(page, f"photo {number}.jpg").click()
        caption.fill(text)
        caption.press("Control+Enter")
    caption.fill("two, and more")
    tile(page, "photo 0.jpg").click()
    expect(caption).to_have_value("zero")
    caption.fill("zero, and more")
    expect(status).to_have_text("Writing ...")
    assert len(held) == 1, "one after the other"
    held_back = False
    held[0].continue_()
    expect(caption).to_have_value("zero, and more")
    page.locator("[data-kiln=closePage]").click()
    expect(page).to_have_count(0)
    written = [(folder / f"photo {number}.txt").read_text() for number in range(3)]
    assert written == ["zero, and more", "one", "two, and more"]


def test_two_tabs_lose_no_edit(canvas: Canvas, folder: Path, host: RunningHost, browser: Browser) -> None:
    page = open_page(canvas, folder)
    tile(page, "photo 0.jpg").click()
    other_page = browser.new_page(viewport={"width": 1500, "height": 1000})
    other_canvas = Canvas(other_page, host.url, "second_tab")
    other_canvas.open()
    other = open_page(other_canvas, folder)
    page.locator("textarea").fill("mine, being typed")
    tile(other, "photo 0.jpg").click()
    other.locator("textarea").fill("theirs, saved first")
    other.locator("textarea").press("Control+Enter")
    expect(other.locator("[role=status]").first).to_have_text("Saved.")
    expect(page.locator(".kiln-ask")).to_contain_text("theirs, saved first")
    expect(page.locator("textarea")).to_have_value("mine, being typed")
    assert (folder / "photo 0.txt").read_text() == "theirs, saved first"
    canvas.shot("asked")
    with canvas.page.expect_response(
        "**/lora_kiln/dataset/items*"
    ):  # the page looks at the folder after a change
        page.locator("[data-kiln=keepMine]").click()
    expect(tile(other, "photo 0.jpg")).to_contain_text("mine, being typed")
    assert (folder / "photo 0.txt").read_text() == "mine, being typed"
    (folder / "photo 1.txt").write_text("by another program", "utf-8")
    tile(page, "photo 1.jpg").click()
    page.locator("textarea").fill("mine again")
    page.locator("textarea").press("Control+Enter")
    expect(page.locator("[role=status]").first).to_contain_text("changed meanwhile")
    expect(page.locator("textarea")).to_have_value("mine again")
    expect(page.locator(".kiln-ask")).to_contain_text("by another program")
    page.locator("[data-kiln=takeTheirs]").click()
    expect(page.locator("textarea")).to_have_value("by another program")
    (folder / "photo 3.txt").write_text("by another program", "utf-8")
    tile(page, "photo 3.jpg").click()
    page.locator("textarea").fill("typed, then left")
    tile(page, "photo 4.jpg").click()
    expect(page.locator(".kiln-detail h3")).to_have_text("photo 3.jpg")
    expect(page.locator("textarea")).to_have_value("typed, then left")
    with canvas.page.expect_response("**/lora_kiln/dataset/items*"):
        page.locator("[data-kiln=keepMine]").click()
    expect(page.locator("[role=status]").first).to_have_text("Saved.")
    expect(page.locator(".kiln-ask")).to_be_hidden()
    assert (folder / "photo 3.txt").read_text() == "typed, then left"
    before = (folder / "photo 5.txt").read_text()
    (folder / "photo 5.txt").write_text("by another program", "utf-8")
    tile(page, "photo 5.jpg").click()
    page.locator("textarea").fill("typed, and taken back")
    page.locator("textarea").press("Control+Enter")
    expect(page.locator(".kiln-ask")).to_be_visible()
    page.locator("textarea").fill(before)
    page.locator("[data-kiln=closePage]").click()
    expect(page).to_have_count(0)
    assert (folder / "photo 5.txt").read_text() == "by another program"
    other_page.close()
    canvas.problems = [p for p in canvas.problems if "409" not in p]  # the browser notes each refusal
    assert other_canvas.problems == []


def complaints(canvas: Canvas, axe: str, selector: str) -> list[str]:
    """What axe finds within an element: rule, and the elements that break it."""
    canvas.page.evaluate(axe)
    found: list[dict[str, Any]] = canvas.page.evaluate(
        "async selector => (await axe.run(selector, {resultTypes: ['violations']})).violations", selector
    )
    return [f"{rule['id']}: {[node['html'][:200] for node in rule['nodes']]}" for rule in found]


def test_assistive_technology_can_use_it(canvas: Canvas, folder: Path, axe: str) -> None:
    page = open_page(canvas, folder)
    measured(page)
    for summary in page.locator("details:not([hidden]) > summary").all():
        summary.click()
    tile(page, "photo 2.jpg").click()
    page.locator("[data-kiln=deleteItem]").click()
    assert complaints(canvas, axe, "dialog.kiln-page") == []
    page.get_by_role("button", name="Keep it").click()
    page.locator("[data-kiln=chooseAll]").click()
    page.locator("[data-kiln=opText]").fill("k1ln")
    assert complaints(canvas, axe, "dialog.kiln-page") == []
    with canvas.page.expect_file_chooser() as chooser:
        page.locator("[data-kiln=pageUpload]").click()
    chooser.value.set_files([folder / "photo 0.jpg", folder / "notes.pdf"])
    expect(canvas.page.locator("dialog.kiln-dialog fieldset")).to_be_visible()
    assert complaints(canvas, axe, "dialog.kiln-dialog") == []
    canvas.page.locator("[data-kiln=uploadCancel]").click()
    page.locator("[data-kiln=closePage]").click()
    canvas.page.wait_for_selector(".kiln-strip img")
    assert complaints(canvas, axe, ".kiln-strip") == []


def test_thousands_of_items(canvas: Canvas, host: RunningHost) -> None:
    """Only the tiles in view exist, wherever one scrolls to."""
    folder = host.base / "input" / "thousands"
    folder.mkdir(exist_ok=True)
    scene(0, (96, 80)).save(folder / "0000.jpg")
    data = (folder / "0000.jpg").read_bytes()
    for number in range(1200):
        (folder / f"{number:04}.jpg").write_bytes(data)
    page = open_page(canvas, folder)
    grid = page.locator("[role=listbox]")
    seen: set[str] = set()
    for share in (0, 0.3, 0.7, 1):
        grid.evaluate(
            "(grid, share) => { grid.scrollTop = share * (grid.scrollHeight - grid.clientHeight) }", share
        )
        if share in (0, 1):
            ends = page.locator(".kiln-tile-name", has_text="1199.jpg" if share else "0000.jpg")
            expect(ends.first).to_be_visible()
        assert page.locator(".kiln-tile").count() < 150
        names: list[str] = page.locator(".kiln-tile-name").all_text_contents()
        seen |= set(names)
    assert {"0000.jpg", "1199.jpg"} <= seen and len(seen) < 400
    canvas.page.wait_for_function(
        "[...document.querySelectorAll('.kiln-tile img')].some(i => i.naturalWidth > 0)"
    )
    canvas.shot("end")
