"""Bringing pictures in: by the button, by dropping, as a folder, as a zip; and how many clicks a first run takes."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from scripts.host import RunningHost
from tests.media import scene

from .conftest import CHINESE, NODES_2, Canvas
from .test_dataset_page import FIND, show_node, tile

DROP = """async ([selector, files, at]) => {
    const transfer = new DataTransfer();
    for (const [name, data] of files) {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        transfer.items.add(new File([bytes], name));
    }
    const element = document.querySelector(selector);
    const box = element.getBoundingClientRect();
    const [x, y] = at ?? [box.x + box.width / 2, box.y + box.height / 2];
    for (const kind of ['dragenter', 'dragover', 'drop']) {
        const options = {bubbles: true, cancelable: true, dataTransfer: transfer, clientX: x, clientY: y};
        element.dispatchEvent(new DragEvent(kind, options));
    }
}"""


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    out = io.BytesIO()
    scene(seed, size).save(out, "JPEG", quality=90)
    return out.getvalue()


def packed(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def drop(canvas: Canvas, selector: str, files: dict[str, bytes], at: list[float] | None = None) -> None:
    encoded = [[name, base64.b64encode(data).decode()] for name, data in files.items()]
    canvas.page.evaluate(DROP, [selector, encoded, at])


def names_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def folder_value(canvas: Canvas) -> Any:
    return canvas.page.evaluate(f"{FIND}.widgets.find(w => w.name === 'folder').value")


def test_from_a_folder_of_photos_to_a_running_training(
    canvas: Canvas, host: RunningHost, tmp_path: Path
) -> None:
    """30 photos without captions, from the template on; at most 12 clicks, no file manager and no terminal."""
    photos = [tmp_path / f"desk {number}.jpg" for number in range(30)]
    for number, path in enumerate(photos):
        path.write_bytes(photo(number, (96, 96)))
    name = f"first_set_{canvas.workflow[:8]}"
    show_node(canvas, name)
    page = canvas.page
    page.evaluate(
        "window.kilnClicks = 0; window.addEventListener('click', e => { kilnClicks += e.isTrusted }, true)"
    )
    with page.expect_file_chooser() as chooser:
        page.locator("[data-kiln=upload]").click()
    chooser.value.set_files(photos)
    expect(page.locator("#kiln-upload-folder")).to_have_value(name)
    canvas.shot("ask")
    page.locator("[data-kiln=uploadGo]").click()
    expect(page.locator(".kiln-figures")).to_contain_text("30 images, 30 without caption")
    canvas.shot("uploaded")
    page.locator("[data-kiln=openDataset]").click()
    expect(page.locator("dialog.kiln-page .kiln-tile").first).to_be_visible()
    page.locator("[data-kiln=chooseAll]").click()
    page.locator("[data-kiln=operation]").select_option("fillMissing")
    page.locator("[data-kiln=opText]").click()
    page.keyboard.type("k1ln")
    page.locator("[data-kiln=apply]").click()
    expect(page.locator("dialog.kiln-page [role=status]").first).to_have_text("30 items are changed.")
    page.locator("[data-kiln=closePage]").click()
    page.get_by_role(
        "button", name="Run", exact=True
    ).first.click()  # some frontends call the menu beside it so too
    canvas.wait_panel("['running', 'done'].includes(panel.state?.status)")
    clicks = page.evaluate("kilnClicks") + 2  # a list is opened and one of it chosen
    assert clicks <= 12, clicks
    assert (host.base / "input" / name / "desk 7.txt").read_text() == "k1ln"
    canvas.shot(f"running-after-{clicks}-clicks")


@pytest.mark.parametrize("settings", [{}, NODES_2], ids=["canvas", "nodes2"])
def test_files_dropped_on_the_node(canvas: Canvas, host: RunningHost) -> None:
    name = f"dropped_{canvas.workflow[:8]}"
    show_node(canvas, name)
    expect(canvas.page.locator(".kiln-figures")).to_contain_text("no such folder yet")
    files = {"a.jpg": photo(1), "a.txt": b"a red zorb", "virus.exe": b"MZ"}
    before = canvas.page.evaluate("(window.app.graph.nodes ?? window.app.graph._nodes).length")
    drop(canvas, ".kiln-strip", files)
    dialog = canvas.page.locator("dialog.kiln-dialog")
    expect(dialog).to_contain_text("A new folder.")
    dialog.locator("details summary").click()
    expect(dialog.locator("details li")).to_contain_text("virus.exe")
    canvas.shot("refused")
    dialog.locator("[data-kiln=uploadGo]").click()
    expect(dialog).to_have_count(0)
    folder = host.base / "input" / name
    assert names_in(folder) == ["a.jpg", "a.txt"]
    expect(canvas.page.locator(".kiln-figures")).to_contain_text("1 images, 0 without caption")
    drop(canvas, ".kiln-strip", {"a.jpg": photo(2), "a.txt": b"another", "b.jpg": photo(3)})
    expect(dialog.locator("fieldset")).to_contain_text("2 names are taken already")
    canvas.shot("clash")
    dialog.locator("[data-kiln=uploadGo]").click()
    expect(dialog).to_have_count(0)
    assert names_in(folder) == ["a (1).jpg", "a (1).txt", "a.jpg", "a.txt", "b.jpg"]
    assert (folder / "a.txt").read_bytes() == b"a red zorb" and (
        folder / "a (1).txt"
    ).read_bytes() == b"another"
    after = canvas.page.evaluate("(window.app.graph.nodes ?? window.app.graph._nodes).length")
    assert after == before, "no Load Image nodes were made of them"


def test_files_dropped_on_the_nodes_title(canvas: Canvas) -> None:
    """Anywhere on the node, not on our widget alone."""
    show_node(canvas, f"title_{canvas.workflow[:8]}")
    place = canvas.page.evaluate(
        f"""() => {{
            const node = {FIND}, view = window.app.canvas.ds, box = window.app.canvas.canvas.getBoundingClientRect();
            return [box.x + (node.pos[0] + 90 + view.offset[0]) * view.scale,
                box.y + (node.pos[1] - 12 + view.offset[1]) * view.scale];
        }}"""
    )
    drop(canvas, "#graph-canvas", {"a.jpg": photo(1)}, place)
    dialog = canvas.page.locator("dialog.kiln-dialog")
    expect(dialog).to_contain_text("1 files")
    dialog.locator("[data-kiln=uploadCancel]").click()
    expect(dialog).to_have_count(0)


def test_a_whole_folder(canvas: Canvas, host: RunningHost, tmp_path: Path) -> None:
    name = f"whole_{canvas.workflow[:8]}"
    for file in ("a.jpg", "b/c.jpg"):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(1))
    show_node(canvas, "tiny_concept")
    with canvas.page.expect_file_chooser() as chooser:
        canvas.page.locator("[data-kiln=uploadFolder]").click()
    chooser.value.set_files(tmp_path / name)
    dialog = canvas.page.locator("dialog.kiln-dialog")
    expect(dialog.locator("#kiln-upload-folder")).to_have_value(name)
    dialog.locator("[data-kiln=uploadGo]").click()
    expect(dialog).to_have_count(0)
    assert names_in(host.base / "input" / name) == ["a.jpg", "b/c.jpg"]
    assert folder_value(canvas) == name
    canvas.shot("node")


def test_a_folder_of_masks_goes_beside_the_pictures(
    canvas: Canvas, host: RunningHost, tmp_path: Path
) -> None:
    made = host.base / "input" / f"masked_{canvas.workflow[:8]}"
    made.mkdir()
    (made / "a.jpg").write_bytes(photo(1))
    for folder in ("masks", "10_more"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(photo(2))
    show_node(canvas, made.name)
    dialog = canvas.page.locator("dialog.kiln-dialog")
    for folder, proposed in (("masks", made.name), ("10_more", "10_more")):
        with canvas.page.expect_file_chooser() as chooser:
            canvas.page.locator("[data-kiln=uploadFolder]").click()
        chooser.value.set_files(tmp_path / folder)
        expect(dialog.locator("#kiln-upload-folder")).to_have_value(proposed)
        dialog.locator("#kiln-upload-folder").fill(made.name)
        expect(dialog).to_contain_text(f"They stay in a sub-folder {folder}")
        dialog.locator("[data-kiln=uploadGo]").click()
        expect(dialog).to_have_count(0)
    assert names_in(made) == ["10_more/a.jpg", "a.jpg", "masks/a.jpg"]
    assert (made / "a.jpg").read_bytes() == photo(1)


@pytest.mark.parametrize("settings", [CHINESE], ids=["zh"])
def test_a_zip(canvas: Canvas, host: RunningHost) -> None:
    show_node(canvas, "tiny_concept")
    name = f"zip_{canvas.workflow[:8]}"
    files = {"set/a.jpg": photo(1), "set/b/c.jpg": photo(2), "set/c.txt": b"x", "set/../../up.jpg": b"x"}
    drop(canvas, ".kiln-strip", {f"{name}.zip": packed(**files)})
    dialog = canvas.page.locator("dialog.kiln-dialog")
    expect(dialog.locator("#kiln-upload-folder")).to_have_value(name)
    dialog.locator("[data-kiln=uploadGo]").click()
    expect(dialog.locator("li")).to_contain_text("up.jpg")
    canvas.shot("said")
    dialog.locator("[data-kiln=uploadCancel]").click()
    expect(dialog).to_have_count(0)
    assert names_in(host.base / "input" / name) == ["a.jpg", "b/c.jpg", "c.txt"]
    assert not (host.base / "up.jpg").exists()
    assert folder_value(canvas) == name


def test_a_folder_is_chosen_from_the_list_or_typed(canvas: Canvas, host: RunningHost) -> None:
    made = host.base / "input" / f"listed_{canvas.workflow[:8]}"
    made.mkdir()
    (made / "a.jpg").write_bytes(photo(1))
    show_node(canvas, "typed by hand")
    choice = canvas.page.locator("select[data-kiln=folder]")
    expect(choice).to_have_value("typed by hand")
    choice.focus()
    expect(choice.locator("option", has_text=made.name)).to_have_count(1)
    choice.select_option(made.name)
    expect(canvas.page.locator(".kiln-figures")).to_contain_text("1 images")
    assert folder_value(canvas) == made.name
    (made / "b.jpg").write_bytes(photo(2))
    canvas.page.evaluate(f"{FIND}.widgets.find(w => w.name === 'folder').value = 'tiny_concept'")
    expect(canvas.page.locator(".kiln-figures")).to_contain_text("20 images, 0 without caption")
    expect(choice).to_have_value("tiny_concept")


def test_a_mask_for_one_item(canvas: Canvas, host: RunningHost, tmp_path: Path) -> None:
    made = host.base / "input" / f"mask_{canvas.workflow[:8]}"
    made.mkdir()
    (made / "a.b.jpg").write_bytes(photo(1))
    Image.new("L", (320, 240), 0).save(tmp_path / "drawn elsewhere.png")
    show_node(canvas, made.name)
    canvas.page.locator("[data-kiln=openDataset]").click()
    page = canvas.page.locator("dialog.kiln-page")
    tile(page, "a.b.jpg").click()
    with canvas.page.expect_file_chooser() as chooser:
        page.locator("[data-kiln=uploadMask]").click()
    chooser.value.set_files(tmp_path / "drawn elsewhere.png")
    canvas.page.locator("[data-kiln=uploadGo]").click()
    page.get_by_label("Show mask").check()
    expect(page.locator(".kiln-overlay")).to_be_visible()
    assert names_in(made) == ["a.b.jpg", "masks/a.b.png"]
    expect(page.locator(".kiln-said, header .kiln-faint").filter(has_text="keep nothing")).to_be_visible(
        timeout=120_000
    )
    canvas.shot("said")


def test_files_dropped_on_the_page_go_into_its_folder(canvas: Canvas, host: RunningHost) -> None:
    made = host.base / "input" / f"page_{canvas.workflow[:8]}"
    made.mkdir()
    (made / "a.jpg").write_bytes(photo(1))
    show_node(canvas, made.name)
    canvas.page.locator("[data-kiln=openDataset]").click()
    page = canvas.page.locator("dialog.kiln-page")
    expect(tile(page, "a.jpg")).to_be_visible()
    drop(canvas, "dialog.kiln-page", {"b.jpg": photo(2)})
    canvas.page.locator("[data-kiln=uploadGo]").click()
    expect(tile(page, "b.jpg")).to_be_visible()
    assert names_in(made) == ["a.jpg", "b.jpg"]
