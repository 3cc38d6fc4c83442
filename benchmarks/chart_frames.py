"""How long frames take while a curve of 20,000 points is panned and zoomed on the training node.

    python -m benchmarks.chart_frames [--frontend 1.58.1]

A real ComfyUI, a real Chromium, the real panel; the points come as a run's messages bring them, and the page measures
itself with the performance API. `draw` is the time inside our own drawing; a frame has 16.7 ms at 60 per second.
`frames/s` counts what the browser showed; without a GPU it composes pictures on the CPU, so `idle`, the same page with
nothing to draw, is the most that the machine can show.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from scripts.host import start_host
from scripts.host_client import HostClient
from scripts.host_files import fetch_frontend, workspace

POINTS = 20_000
FRAMES = 240
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Locale": "en"}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

LOAD = """async () => {
    const answer = await fetch('/api/workflow_templates/tiny_wan_demo/train_then_sample_tiny.json');
    await window.app.loadGraphData(await answer.json());
    const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');
    Object.assign(window.app.canvas.ds, {scale: 1, offset: [300 - node.pos[0], 160 - node.pos[1]]});
    window.app.canvas.setDirty(true, true);
    window.kiln = node.kilnPanel;
}"""

FILL = """async ([count, batch]) => {
    const {chart} = window.kiln, times = [];
    for (let first = 1; first <= count; first += batch) {
        const points = Array.from({length: batch}, (_, i) => {
            const step = first + i, loss = 0.2 + 1 / (1 + step / 500);
            return [step, loss + 0.1 * Math.sin(step * 12.9898) ** 3, loss, 1e-4 * Math.cos(step / count)];
        });
        const start = performance.now();
        chart.add(points);
        times.push(performance.now() - start);
        if (first % 2000 < batch) await new Promise(requestAnimationFrame);
    }
    return {times, kept: chart.steps.length, last: chart.steps.at(-1)};
}"""

MEASURE = """async ([what, frames]) => {
    const {chart} = window.kiln, draws = [], stamps = [], width = chart.canvas.clientWidth;
    const draw = chart.draw.bind(chart);
    chart.draw = () => {
        const start = performance.now();
        draw();
        draws.push(performance.now() - start);
    };
    chart.zoom = null;
    if (what === 'pan') chart.zoomAt(width / 2, 0.3);
    for (let i = 0; i < frames; i++) {
        if (what === 'pan') chart.show(chart.range(), 200 * (i % 40 < 20 ? 1 : -1));
        if (what === 'zoom') chart.zoomAt(width / 3, i % 20 < 10 ? 0.8 : 1.25);
        if (what === 'hover') chart.point(chart.stepAt(60 + (i * 3) % (width - 80)));
        stamps.push(await new Promise(requestAnimationFrame));
    }
    delete chart.draw;
    return {draws, gaps: stamps.slice(1).map((t, i) => t - stamps[i])};
}"""


def share(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def measure(page: Page, mode: str) -> None:
    page.wait_for_function("window.app?.graph && window.app?.extensionManager")
    page.evaluate(LOAD)
    page.wait_for_selector(".kiln-panel canvas", state="visible")
    page.wait_for_timeout(2000)
    filled = page.evaluate(FILL, [POINTS, 5])
    print(
        f"{mode}: {filled['last']} points came, {filled['kept']} are kept; a message of 5 takes "
        f"{share(filled['times'], 0.5):.3f} ms, at most {max(filled['times']):.1f} ms"
    )
    for what in ("idle", "pan", "zoom", "hover"):
        found: dict[str, Any] = page.evaluate(MEASURE, [what, FRAMES])
        gaps, draws = found["gaps"], found["draws"]
        drawn = f"draw {share(draws, 0.5):.2f} ms, 95 % below {share(draws, 0.95):.2f} ms; " if draws else ""
        print(
            f"  {what:6}{drawn}{1000 * len(gaps) / sum(gaps):.1f} frames/s, 95 % below {share(gaps, 0.95):.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--frontend", default="", help="a release of the host's frontend; default: the host's own"
    )
    frontend = parser.parse_args().frontend
    root = ["--front-end-root", str(fetch_frontend(frontend))] if frontend else []
    base = workspace("chart-frames", fresh=True)
    with (
        start_host(base, python=Path(sys.executable), cpu=True, extra_args=root) as host,
        sync_playwright() as play,
    ):
        client = HostClient(host.url)
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = play.chromium.launch(executable_path=path, args=FLAGS)
        for mode, nodes_2 in (("canvas mode", False), ("Nodes 2.0", True)):
            client.post_json("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": nodes_2})
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.goto(host.url)
            measure(page, mode)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
