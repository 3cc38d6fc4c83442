"""How fluid the dataset page is with 5,000 items, how soon it is there, and whether its memory stays bounded.

    python -m benchmarks.dataset_page [--items 5000] [--frontend 1.58.1]

A real ComfyUI and a real Chromium. JPEGs of 640 x 512 pixels from a handful of scenes, each with a caption. The page is
opened twice: on a folder that nobody has looked at, and again when it is known. Scrolling goes through the whole grid,
a step each frame; `idle` is the same page at rest, the most that the machine shows without a GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.chart_frames import FLAGS, SETTINGS, share
from scripts.host import start_host
from scripts.host_client import HostClient
from scripts.host_files import fetch_frontend, workspace
from tests.media import scene

SCENES = 20
OPEN = """async folder => {
    const {DatasetPage} = await import('/extensions/comfyui-lora-kiln/dataset_page.mjs');
    const start = performance.now();
    window.kiln = new DatasetPage({folder, recursive: false, also: ''}, {resolution: 512, max_frames: 33, fps: 16}, []);
    window.kiln.start();
    while (!document.querySelector('.kiln-tile')) await new Promise(requestAnimationFrame);
    const listed = performance.now() - start;
    const loaded = () => [...document.querySelectorAll('.kiln-tile img')].filter(i => i.naturalWidth > 0).length;
    while (loaded() < 1) await new Promise(requestAnimationFrame);
    const first = performance.now() - start;
    while (loaded() < 12) await new Promise(requestAnimationFrame);
    return {listed, first, twelve: performance.now() - start};
}"""
SCROLL = """async ([what, frames]) => {
    const grid = window.kiln.grid.root, stamps = [];
    const far = grid.scrollHeight - grid.clientHeight;
    let most = 0;
    for (let i = 0; i < frames; i++) {
        if (what === 'slow') grid.scrollTop = (i * 40) % far;
        if (what === 'through') grid.scrollTop = far * i / frames;
        stamps.push(await new Promise(requestAnimationFrame));
        most = Math.max(most, document.querySelectorAll('.kiln-tile').length);
    }
    return {gaps: stamps.slice(1).map((t, i) => t - stamps[i]), tiles: most};
}"""


def fill(folder: Path, items: int) -> None:
    folder.mkdir(parents=True)
    for number in range(SCENES):
        scene(number).save(folder / f"{number:05}.jpg", quality=92)
    for number in range(items):
        path = folder / f"{number:05}.jpg"
        if number >= SCENES:
            shutil.copyfile(folder / f"{number % SCENES:05}.jpg", path)
        path.with_suffix(".txt").write_text(f"scene {number % SCENES}, number {number}, outdoors", "utf-8")


def heap(page: Page) -> float:
    """MB of the page's own objects, after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used: float = session.send("Runtime.getHeapUsage")["usedSize"]
    return used / 1e6


def measure(page: Page, what: str) -> None:
    before = heap(page)
    opened = page.evaluate(OPEN, "bench")
    print(
        f"{what}: listed after {opened['listed']:.0f} ms, first picture {opened['first']:.0f} ms, twelve "
        f"{opened['twelve']:.0f} ms"
    )
    start = time.monotonic()
    page.wait_for_function("Object.keys(window.kiln.figures).length > 0", timeout=600_000)
    print(
        f"  sizes and warnings {time.monotonic() - start:.1f} s later; page's memory +{heap(page) - before:.0f} MB"
    )
    for kind in ("idle", "slow", "through"):
        found: dict[str, Any] = page.evaluate(SCROLL, [kind, 300])
        gaps = found["gaps"]
        print(
            f"  {kind:8}{1000 * len(gaps) / sum(gaps):.1f} frames/s, 95 % below {share(gaps, 0.95):.1f} ms, at most "
            f"{found['tiles']} tiles"
        )
    print(f"  after scrolling through: page's memory +{heap(page) - before:.0f} MB")
    page.evaluate("window.kiln.close()")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument(
        "--frontend", default="", help="a release of the host's frontend; default: the host's own"
    )
    options = parser.parse_args()
    root = ["--front-end-root", str(fetch_frontend(options.frontend))] if options.frontend else []
    base = workspace("dataset-page", fresh=True)
    fill(base / "input" / "bench", options.items)
    with (
        start_host(base, python=Path(sys.executable), cpu=True, extra_args=root) as host,
        sync_playwright() as play,
    ):
        HostClient(host.url).post_json("/settings", SETTINGS)
        browser = play.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS
        )
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(host.url)
        page.wait_for_function("window.app?.graph && window.app?.extensionManager")
        page.wait_for_timeout(2000)
        measure(page, "a new folder")
        measure(page, "known")
        browser.close()


if __name__ == "__main__":
    main()
