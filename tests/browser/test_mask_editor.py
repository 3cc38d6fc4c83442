"""The host's mask editor, opened from the dataset page: on every frontend what is painted becomes the item's mask."""

from __future__ import annotations

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, expect

from scripts.host import RunningHost
from tests.media import scene

from .conftest import Canvas
from .test_dataset_page import open_page, tile

EDITOR = "#maskEditorCanvasContainer"


def editor_button(canvas: Canvas, name: str) -> Locator:
    dialog = canvas.page.get_by_role("dialog").filter(has=canvas.page.locator(EDITOR))
    return dialog.locator("button", has_text=name)


def test_a_mask_is_painted(canvas: Canvas, host: RunningHost) -> None:
    folder = host.base / "input" / f"painted_{canvas.workflow[:8]}"
    folder.mkdir()
    scene(1, (640, 512)).save(folder / "a.jpg")
    page = open_page(canvas, folder)
    tile(page, "a.jpg").click()
    page.locator("[data-kiln=paintMask]").click()
    editor = canvas.page.locator(EDITOR)
    expect(editor).to_be_visible()
    expect(page).to_be_hidden()  # it would lie above the editor
    save = editor_button(canvas, "Save")
    expect(save).to_be_enabled()
    canvas.page.wait_for_function(
        f"() => [...document.querySelectorAll('{EDITOR} canvas')].some(c => c.width === 640 && c.height === 512)"
    )
    canvas.page.wait_for_timeout(500)  # it fits the picture into view
    middle = canvas.page.evaluate(
        f"""() => {{
            const canvases = [...document.querySelectorAll('{EDITOR} canvas')].filter(c => c.width === 640);
            const box = canvases[0].getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2, box.width];
        }}"""
    )
    mouse = canvas.page.mouse
    mouse.move(middle[0] - middle[2] / 8, middle[1])
    mouse.down()
    mouse.move(middle[0] + middle[2] / 8, middle[1], steps=12)
    mouse.up()
    canvas.shot("painting")
    save.click()
    expect(editor).to_have_count(0)
    expect(page.locator(".kiln-said")).to_have_text("The mask is saved.")
    mask = np.asarray(Image.open(folder / "masks" / "a.png").convert("L"))
    assert mask.shape == (512, 640) and mask[256, 320] > 200 and mask[10, 10] == 0 and mask[500, 630] == 0
    page.get_by_label("Show mask").check()
    expect(page.locator(".kiln-overlay")).to_be_visible()
    canvas.page.wait_for_function("document.querySelector('.kiln-overlay').naturalWidth > 0")
    canvas.shot("painted")
    page.locator("[data-kiln=undo]").click()
    expect(page.locator(".kiln-said")).to_have_text("Taken back.")
    assert not (folder / "masks" / "a.png").exists()


def test_nothing_is_written_when_the_editor_is_left(canvas: Canvas, host: RunningHost) -> None:
    folder = host.base / "input" / f"left_{canvas.workflow[:8]}"
    folder.mkdir()
    scene(1, (640, 512)).save(folder / "a.jpg")
    page = open_page(canvas, folder)
    tile(page, "a.jpg").click()
    page.locator("[data-kiln=paintMask]").click()
    expect(canvas.page.locator(EDITOR)).to_be_visible()
    editor_button(canvas, "Cancel").click()
    expect(page).to_be_visible()
    expect(page.locator(".kiln-said")).to_have_text("")
    assert sorted(p.name for p in folder.iterdir()) == ["a.jpg"]
