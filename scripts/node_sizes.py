"""Measure how tall the frontends draw every node of the workflow files, into node_sizes.json:

    python -m scripts.node_sizes

Three frontends, and in each both ways of drawing: the canvas, and the elements of "Nodes 2.0". Needs Chromium.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from scripts.host import start_host
from scripts.host_client import HostClient
from scripts.host_files import HOST_FRONTEND, fetch_frontend, workspace
from scripts.workflow_graph import NODE_SIZES, TITLE
from scripts.workflows import all_graphs

FRONTENDS = ("1.32.9", "1.49.6", "1.58.1")
"""What host 0.3.75 pins, what 0.33 pins, and the newest we know."""

WIDTH = 320  # the narrowest column of the templates

PLACE = """async ([kinds, width]) => {
    const nodes = kinds.map((type, i) => ({
        id: i + 1, type, pos: [200, 200], size: [width, 10], flags: {}, order: i, mode: 0, properties: {},
    }));
    await window.app.loadGraphData({last_node_id: nodes.length, last_link_id: 0, nodes, links: [], version: 0.4});
    window.app.canvas.ds.scale = 0.8;
    window.app.canvas.ds.offset = [0, 0];
}"""
DRAWN = """() => {
    const graph = window.app.graph, scale = window.app.canvas.ds.scale;
    return (graph.nodes ?? graph._nodes).map(node => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`);
        const [x, y, width, height] = node.boundingRect ?? node.getBounding();
        const box = element?.getBoundingClientRect();
        return {
            id: String(node.id), type: node.type, x, y,
            width: box ? box.width / scale : width, height: box ? box.height / scale : height,
        };
    });
}"""


def drawn_boxes(page: Page) -> list[dict[str, Any]]:
    """Every node's box as it is drawn, title included, in pixels of the canvas; once it has come to rest."""
    page.evaluate("() => { window.app.canvas.setDirty(true, true); }")
    last: list[dict[str, Any]] = []
    while True:
        page.wait_for_timeout(150)
        boxes = page.evaluate(DRAWN)
        if boxes == last:
            return boxes
        last = boxes


@contextmanager
def frontend(version: str, browser: Browser) -> Iterator[tuple[HostClient, str]]:
    """A server with one frontend: its client and address."""
    root = [] if version == HOST_FRONTEND else ["--front-end-root", str(fetch_frontend(version))]
    with start_host(workspace(f"sizes-{version.replace('.', '-')}", fresh=True), extra_args=root) as host:
        yield HostClient(host.url), host.url


def measure(browser: Browser) -> dict[str, int]:
    """Node class -> height without its title."""
    tallest: dict[str, int] = defaultdict(int)
    for version in FRONTENDS:
        with frontend(version, browser) as (client, url):
            graphs = all_graphs(client.object_info()).values()
            kinds = sorted({kind for graph in graphs for kind in graph.kinds()})
            for nodes_2 in (False, True):
                client.post_json(
                    "/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": nodes_2}
                )
                page = browser.new_page(viewport={"width": 1500, "height": 1000})
                page.goto(url)
                page.wait_for_function("window.app?.graph && window.app?.extensionManager")
                page.evaluate(PLACE, [kinds, WIDTH])
                for box in drawn_boxes(page):
                    # Frontend 1.32.9 enlarges everything, the places too, when Nodes 2.0 draws
                    height = round(box["height"] * WIDTH / max(WIDTH, box["width"])) - TITLE
                    tallest[box["type"]] = max(tallest[box["type"]], height)
                page.close()
    return dict(sorted(tallest.items()))


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        sizes = measure(browser)
        browser.close()
    Path(NODE_SIZES).write_text(json.dumps(sizes, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
