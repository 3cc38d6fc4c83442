"""The panel in every place a training node can be: from the template browser to a subgraph, on two pages, collapsed."""

from __future__ import annotations

import base64
import time

import pytest
from playwright.sync_api import Browser, expect

from scripts.host import RunningHost
from scripts.host_client import HostClient

from .conftest import NODES_2, Canvas, done_now, finished

NODES = "const nodes = g => g.nodes ?? g._nodes; const all = nodes(window.app.graph);"


def run_js(canvas: Canvas, body: str, value: object = None) -> object:
    """Run statements on the page with `all`, the nodes of the graph, and `value`; the result of its `return`."""
    return canvas.page.evaluate(f"async value => {{ {NODES} {body} }}", value)


def test_from_the_template_browser(canvas: Canvas, client: HostClient) -> None:
    page = canvas.page
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("tiny_wan_demo").first.click()
    page.get_by_text("train_then_sample_tiny").first.click()
    page.wait_for_function(
        "() => (window.app.graph.nodes ?? window.app.graph._nodes).some(n => n.type === 'KilnTrainLora')"
    )
    canvas.look()
    run_js(
        canvas, "all.find(n => n.type === 'KilnTrainLora').widgets.find(w => w.name === 'steps').value = 15"
    )
    before = done_now(client)
    page.evaluate("() => window.app.queuePrompt(0)")
    finished(client, before + 1)
    canvas.wait_panel("panel.state?.status === 'done' && panel.chart.steps.length === 15")
    canvas.shot("template")


def test_two_pages_show_the_same_run(
    canvas: Canvas, client: HostClient, host: RunningHost, browser: Browser
) -> None:
    canvas.load(steps=100_000)
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    canvas.wait_panel("panel.chart.steps.length > 5")
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    other = Canvas(page, host.url, "second_page")
    other.open()
    other.workflow = canvas.workflow
    other.load(steps=100_000)
    other.wait_panel("panel.state?.status === 'running' && panel.chart.steps[0] === 1")
    seen = other.panel()["points"]
    other.wait_panel(f"panel.chart.steps.length > {seen}")  # it follows, not only fetches
    other.finish()
    canvas.wait_panel("panel.state.status === 'stopped'")
    client.interrupt()
    page.close()
    assert other.problems == []


def test_a_dropped_lora_brings_back_its_graph(canvas: Canvas, client: HostClient, host: RunningHost) -> None:
    canvas.load(steps=11)
    before = done_now(client)
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    run = finished(client, before + 1)[-1]["run"]
    lora = host.base / "user" / "__lora_kiln" / "runs" / str(run) / "lora.safetensors"
    deadline = time.monotonic() + 300
    while not lora.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.interrupt()
    run_js(canvas, "window.app.graph.clear()")
    run_js(
        canvas,
        """
        const bytes = Uint8Array.from(atob(value), c => c.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], 'mine.safetensors'));
        const place = {clientX: 700, clientY: 500, bubbles: true, cancelable: true, dataTransfer};
        window.app.canvas.canvas.dispatchEvent(new DragEvent('drop', place));
        """,
        base64.b64encode(lora.read_bytes()).decode(),
    )
    canvas.page.wait_for_function(
        """() => (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora')
            ?.widgets.find(w => w.name === 'steps').value === 11"""
    )


def test_in_a_subgraph(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=13)
    run_js(
        canvas,
        """
        const node = all.find(n => n.type === 'KilnTrainLora');
        const {node: outer} = window.app.graph.convertToSubgraph(new Set([node]));
        window.kilnOuter = outer;
        """,
    )
    before = done_now(client)
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    run = finished(client, before + 1)[-1]
    assert str(run["node"]).count(":") == 1
    canvas.page.wait_for_function(
        """() => {
            const inside = window.kilnOuter.subgraph, nodes = inside.nodes ?? inside._nodes;
            const panel = nodes.find(n => n.type === 'KilnTrainLora').kilnPanel;
            return panel.state?.status === 'done' && panel.chart.steps.length === 13;
        }"""
    )
    run_js(
        canvas,
        """
        window.app.canvas.openSubgraph(window.kilnOuter.subgraph, window.kilnOuter);
        const node = nodes(window.kilnOuter.subgraph).find(n => n.type === 'KilnTrainLora');
        window.app.canvas.ds.scale = 1;
        window.app.canvas.ds.offset = [300 - node.pos[0], 160 - node.pos[1]];
        window.app.canvas.setDirty(true, true);
        """,
    )
    expect(canvas.page.locator(".kiln-panel canvas")).to_be_visible()
    expect(canvas.page.locator(".kiln-estimate")).to_contain_text("Memory: about")  # the loader is outside
    canvas.shot("subgraph")


def test_two_trainers_and_one_collapsed(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=14)
    run_js(
        canvas,
        """
        const graph = window.app.graph;
        const first = all.find(n => n.type === 'KilnTrainLora'), save = all.find(n => n.type === 'KilnSaveLora');
        const second = first.clone(), saved = save.clone();
        second.pos = [first.pos[0], first.pos[1] - 900];
        graph.add(second);
        graph.add(saved);
        for (const name of ['model', 'encoded', 'settings']) {
            const slot = first.inputs.findIndex(i => i.name === name);
            const from = first.getInputNode(slot);
            if (from) from.connect(first.getInputLink(slot).origin_slot, second, slot);
        }
        second.connect(0, saved, 0);
        second.widgets.find(w => w.name === 'steps').value = 9;
        second.widgets.find(w => w.name === 'seed').value = 99;
        first.collapse();
        """,
    )
    before = done_now(client)
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    finished(client, before + 2)
    canvas.page.wait_for_function(
        f"""() => {{
            {NODES}
            const panels = all.filter(n => n.type === 'KilnTrainLora').map(n => n.kilnPanel);
            return panels.every(p => p.state?.status === 'done')
                && panels.map(p => p.chart.steps.length).sort().join() === '14,9';
        }}"""
    )
    run_js(canvas, "all.find(n => n.flags.collapsed).collapse()")
    canvas.look()
    canvas.page.wait_for_function(
        f"() => {{ {NODES} return all.find(n => n.type === 'KilnTrainLora').kilnPanel.chart.drawn > 0; }}"
    )
    assert canvas.panel()["ink"] > 50, "drawn when it comes into view"


@pytest.mark.parametrize("settings", [NODES_2], ids=["nodes2"])
def test_nodes_2_has_every_part(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=100_000)
    expect(canvas.page.locator(".kiln-estimate")).to_contain_text("Memory: about")
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    canvas.wait_panel("panel.chart.steps.length > 5")
    chart = canvas.page.locator(".kiln-panel canvas")
    for _ in range(
        300
    ):  # the frontend rebuilds a node's widgets when it begins to run, and a key pressed then is lost
        chart.press("Home")
        if chart.get_attribute("aria-valuenow") == "1":
            break
        canvas.page.wait_for_timeout(100)
    expect(chart).to_have_attribute("aria-valuenow", "1")
    canvas.finish()
    canvas.wait_panel("panel.state.status === 'stopped'")
    client.interrupt()
    canvas.shot("nodes2")
