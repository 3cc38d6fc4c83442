"""Draw the thumbnail of every template: its title and what comes out, over a picture of the graph.

    python -m scripts.thumbnails

The host's template browser shows a template's file name and this picture, nothing else. Needs Chromium.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Page, sync_playwright

from scripts import model_downloads
from scripts.edit_template import EDITS
from scripts.experts_template import TITLE as EXPERTS
from scripts.first_frame_template import TITLE as FIRST_FRAME
from scripts.host import start_host
from scripts.host_client import HostClient
from scripts.host_files import fetch_frontend, workspace
from scripts.model_downloads import ModelFile
from scripts.node_sizes import FRONTENDS, drawn_boxes
from scripts.slider_template import TITLE as SLIDER
from scripts.training_templates import STORIES
from scripts.workflows import TEMPLATES, WAN_LORA

SIDE, BAND = 512, 240  # pixels: the picture, its text
SMALL = ImageFont.load_default(19)
OTHERS = {
    EXPERTS: "in: your pictures\nout: a LoRA file for each expert, a picture drawn with both",
    FIRST_FRAME: "in: your clips, a picture\nout: a LoRA file, the loss, the picture set in motion without and with it",
    SLIDER: "in: words for both ends\nout: a LoRA file, one picture at five strengths from -1 to 1",
    "Compare strengths": "in: your LoRA\nout: one picture, your LoRA at six strengths side by side",
    "Caption a dataset": "in: your pictures, a model that looks at them\nout: a caption beside each, a report",
    "Look at a dataset": "in: your pictures\nout: a report on them, what to mend, a contact sheet",
}
EMPTY_VIEW = """box => {
    const view = window.app.canvas.ds, [x, y, width, height] = box;
    view.scale = Math.min(2200 / width, 1250 / height);
    view.offset[0] = 70 / view.scale - x;
    view.offset[1] = 100 / view.scale - y;
    window.app.canvas.setDirty(true, true);
    return view.scale;
}"""


def what_comes_out() -> dict[str, str]:
    """Template -> its description."""
    texts = {}
    for story in STORIES:
        shown = "clips" if story.clips > 1 else "pictures"
        more = "" if story.starter else f", samples while it trains, {shown} without and with it"
        texts[story.title] = f"in: your {shown}\nout: a LoRA file, the loss{more}"
    for edit in EDITS:
        texts[edit.title] = (
            "in: your pairs of pictures\nout: a LoRA file, the loss, your picture edited without and with it"
        )
    return {**texts, **OTHERS}


def picture_of_graph(page: Page, path: Path) -> Image.Image:
    """The whole graph, as the canvas draws it."""
    page.evaluate(
        "async workflow => { await window.app.loadGraphData(workflow); }", json.loads(path.read_text("utf-8"))
    )
    boxes = [b for b in drawn_boxes(page) if b["type"] != "MarkdownNote"]
    left, top = min(b["x"] for b in boxes) - 30, min(b["y"] for b in boxes) - 70
    width = max(b["x"] + b["width"] for b in boxes) + 30 - left
    height = max(b["y"] + b["height"] for b in boxes) + 30 - top
    scale = page.evaluate(EMPTY_VIEW, [left, top, width, height])
    drawn_boxes(page)
    shot = Image.open(
        io.BytesIO(
            page.screenshot(clip={"x": 70, "y": 100, "width": width * scale, "height": height * scale})
        )
    )
    return shot.convert("RGB")


def wrapped(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    """A text in lines of at most so many pixels."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=SMALL) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def thumbnail(title: str, text: str, graph: Image.Image) -> Image.Image:
    """Title and text above the graph."""
    made = Image.new("RGB", (SIDE, SIDE), "#1d232b")
    draw = ImageDraw.Draw(made)
    y = 66  # the host's badge lies above
    for line in title.replace(" - ", "\n").split("\n"):
        draw.text((20, y), line, fill="#ffffff", font=ImageFont.load_default(34))
        y += 42
    for line in text.split("\n"):
        for part in wrapped(draw, line, SIDE - 40):
            draw.text((20, y + 6), part, fill="#b8c4d0", font=SMALL)
            y += 25
    room = SIDE - BAND
    factor = max(SIDE / graph.width, room / graph.height)
    scaled = graph.resize(
        (round(graph.width * factor), round(graph.height * factor)), Image.Resampling.LANCZOS
    )
    made.paste(scaled.crop((0, 0, SIDE, room)), (0, BAND))
    return made


def main() -> None:
    base = workspace("thumbnails", fresh=True)
    lora = base / "models" / "loras" / WAN_LORA
    lora.parent.mkdir(parents=True, exist_ok=True)
    lora.touch()
    for file in (f for f in vars(model_downloads).values() if isinstance(f, ModelFile)):
        place = base / "models" / file.directory / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()  # the host marks loaders whose file is missing
    (base / "input").mkdir(exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), "#2f4f3f").save(
        base / "input" / "example.png"
    )  # it says so of pictures, too
    root = ["--front-end-root", str(fetch_frontend(FRONTENDS[-1]))]
    with start_host(base, extra_args=root) as host, sync_playwright() as playwright:
        HostClient(host.url).post_json(
            "/settings",
            {
                "Comfy.TutorialCompleted": True,
                "Comfy.Minimap.Visible": False,
                "Comfy.NodeBadge.ShowApiPricing": False,
            },
        )
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = browser.new_page(viewport={"width": 2400, "height": 1450})
        page.goto(host.url)
        page.wait_for_function("window.app?.graph && window.app?.extensionManager")
        texts = what_comes_out()
        for path in sorted(TEMPLATES.glob("*.json")):
            made = thumbnail(path.stem, texts[path.stem], picture_of_graph(page, path))
            made.save(path.with_suffix(".jpg"), quality=82)
        browser.close()


if __name__ == "__main__":
    main()
