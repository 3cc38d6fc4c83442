"""A real Chromium on a real ComfyUI, with two generations of its frontend. Screenshots go to test-results/."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from scripts.host import RunningHost, start_host
from scripts.host_client import HostClient
from scripts.host_files import REPO, fetch_frontend, workspace

FRONTENDS = ("1.32.9", "1.58.1")  # what host 0.3.75 pins, and the newest we know
RESULTS = REPO / "test-results"
SEEDS = itertools.count(1000)
HOSTS_OWN = "getCanvas: canvas is null"  # frontend 1.32.9, when a page is left while it draws its graph
CHINESE = {"Comfy.Locale": "zh"}
NODES_2 = {"Comfy.VueNodes.Enabled": True}
# The button in the sidebar: a class in the older frontend, a test id in the newer one
RUNS_TAB = ".lora-kiln-runs-tab-button, [data-testid=lora-kiln-runs-tab-button]"
AXE = "axe-core@4.10.3"  # finds what assistive technology cannot use
# How many times slower the page's processor is (1: not), to find tests and code that are right by speed alone: then
# every answer of our routes comes late, too. See CONTRIBUTING.md.
SLOWER = float(os.environ.get("KILN_SLOWER_BROWSER", "1"))
LATE = """const atOnce = window.fetch;
window.fetch = async (...given) => {
    if (String(given[0]?.url ?? given[0]).includes('lora_kiln')) await new Promise(done => setTimeout(done, 150 * %g));
    return atOnce(...given);
};"""
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session", params=FRONTENDS)
def host(request: pytest.FixtureRequest) -> Iterator[RunningHost]:
    """One server for each frontend."""
    root = [] if request.param == FRONTENDS[0] else ["--front-end-root", str(fetch_frontend(request.param))]
    base = workspace(f"browser-{request.param.replace('.', '-')}", fresh=True)
    with start_host(base, python=Path(sys.executable), cpu=True, extra_args=root) as running:
        yield running


@pytest.fixture(scope="session")
def client(host: RunningHost) -> HostClient:
    return HostClient(host.url)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched once by the environment's npm."""
    folder = REPO / ".work" / "axe"
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--silent", AXE]
        subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=True)
    return script.read_text("utf-8")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


expect.set_options(timeout=120_000)  # milliseconds: the machine runs other tests beside these


class Canvas:
    """The page, and what a user does on it."""

    def __init__(self, page: Page, url: str, name: str) -> None:
        self.page, self._url, self._name = page, url, name
        self._seed = next(SEEDS)
        self.workflow = str(
            uuid.uuid4()
        )  # of the graph that `load` opens: the same one when it is opened again
        self.problems: list[str] = []
        page.on("console", self._listen)
        page.on("pageerror", self._hear)

    def _hear(self, error: Exception) -> None:
        if str(error) != HOSTS_OWN:
            self.problems.append(str(error))

    def _listen(self, message: Any) -> None:
        ours = "lora-kiln" in (message.location or {}).get("url", "") or "LoRA Kiln" in message.text
        if message.type in ("error", "warning") and ours:
            self.problems.append(message.text)

    def open(self) -> None:
        """Load the page and wait for the host's app."""
        self.page.goto(self._url)
        self.page.wait_for_function("window.app?.graph && window.app?.extensionManager")

    def load(self, steps: int) -> None:
        """The tiny demo's template, with the training node in view; with another seed for each page, because the server
        trains no graph again that it has just run."""
        self.page.evaluate(
            """async ([steps, seed, id]) => {
                const answer = await fetch('/api/workflow_templates/tiny_wan_demo/train_then_sample_tiny.json');
                const workflow = await answer.json();
                const train = workflow.nodes.find(n => n.type === 'KilnTrainLora');
                train.widgets_values[1] = steps;
                train.widgets_values[6] = seed;
                await window.app.loadGraphData({...workflow, id});
            }""",
            [steps, self._seed, self.workflow],
        )
        self.look()

    def look(self) -> None:
        """Bring the training node into view."""
        self.page.evaluate(
            """() => {
                const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
                const node = nodes.find(n => n.type === 'KilnTrainLora');
                const view = window.app.canvas.ds;
                view.scale = 1;
                view.offset[0] = 300 - node.pos[0];
                view.offset[1] = 90 - node.pos[1];
                window.app.canvas.setDirty(true, true);
            }"""
        )
        self.page.wait_for_selector(".kiln-panel canvas", state="visible")

    def panel(self) -> dict[str, Any]:
        """What the panel on the training node shows."""
        return self.page.evaluate(
            """() => {
                const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
                const panel = nodes.find(n => n.type === 'KilnTrainLora').kilnPanel;
                return {
                    points: panel.chart.steps.length,
                    status: panel.state?.status ?? null,
                    figures: panel.figures.textContent,
                    text: panel.advice.textContent,
                    ink: (() => {
                        const c = panel.chart.canvas, x = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                        let blue = 0;
                        for (let i = 0; i < x.length; i += 4) if (x[i + 3] > 100 && x[i + 2] > x[i] + 60) blue++;
                        return blue;
                    })(),
                };
            }"""
        )

    def wait_panel(self, condition: str) -> None:
        """Wait until `condition`, over `panel`, holds."""
        self.page.wait_for_function(
            f"""() => {{
                const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
                const panel = nodes.find(n => n.type === 'KilnTrainLora')?.kilnPanel;
                return panel && ({condition});
            }}""",
            timeout=120_000,
        )

    def press(self, button: str) -> None:
        self.page.click(f"button[data-kiln={button}]")

    def finish(self) -> None:
        """End the run by its button, which asks first."""
        self.page.evaluate("() => document.querySelector('button[data-kiln=finish]').click()")
        self.page.evaluate("() => document.querySelector('button[data-kiln=reallyFinish]').click()")

    def shot(self, what: str) -> None:
        RESULTS.mkdir(exist_ok=True)
        self.page.screenshot(path=RESULTS / f"{self._name}-{what}.png")


def finished(client: HostClient, count: int) -> list[dict[str, Any]]:
    """The newest runs, as soon as so many more are done than before."""
    deadline = time.monotonic() + 120
    while True:
        runs: list[dict[str, Any]] = client.get_json("/lora_kiln/runs")["runs"]
        done = [r for r in runs if r["status"] == "done"]
        if len(done) >= count:
            return done
        assert time.monotonic() < deadline, runs
        time.sleep(0.1)


def done_now(client: HostClient) -> int:
    return sum(r["status"] == "done" for r in client.get_json("/lora_kiln/runs")["runs"])


@pytest.fixture
def settings() -> dict[str, Any]:
    """Settings of the frontend that are not the usual ones; a test gives its own by `parametrize`."""
    return {}


@pytest.fixture
def canvas(
    host: RunningHost,
    client: HostClient,
    browser: Browser,
    settings: dict[str, Any],
    request: pytest.FixtureRequest,
) -> Iterator[Canvas]:
    """A fresh page on the server, in English, without the host's own welcome."""
    usual = {
        "Comfy.TutorialCompleted": True,
        "Comfy.Minimap.Visible": False,
        "Comfy.Locale": "en",
        "Comfy.VueNodes.Enabled": False,
    }
    client.post_json("/settings", {**usual, **settings})
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(120_000)  # as above
    if SLOWER > 1:
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        page.add_init_script(LATE % SLOWER)
    made = Canvas(page, host.url, re.sub(r"[^\w.-]+", "_", request.node.name))
    made.open()
    yield made
    page.close()
    client.post_json("/queue", {"clear": True})  # what a test leaves running would keep the next one waiting
    client.interrupt()
    assert made.problems == []
