"""The panel on the training node, as a user sees it."""

from __future__ import annotations

import re
import uuid

import pytest
from playwright.sync_api import Locator, expect

from scripts.host_client import HostClient, failure_of

from .conftest import NODES_2, Canvas

NODE = (
    "const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');"
)
WIDTH = f"() => {{ {NODE} return node.kilnPanel.root.getBoundingClientRect().width; }}"


def in_a_toast(canvas: Canvas, text: str) -> Locator:
    """The text in one of the host's messages, which are built otherwise in 1.58.1; not on the node."""
    there = canvas.page.locator(":not(.kiln_error):not(.kiln-panel *):not(.comfy-error-report *)")
    return canvas.page.get_by_text(text).and_(there).first


def queue(canvas: Canvas) -> None:
    canvas.page.evaluate("() => window.app.queuePrompt(0)")


def test_curve_grows_buttons_work_and_reload_restores(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=100_000)
    queue(canvas)
    canvas.wait_panel("panel.state?.status === 'running' && panel.chart.steps.length > 20")
    before = canvas.panel()["points"]
    canvas.wait_panel(f"panel.chart.steps.length > {before + 10}")
    shown = canvas.panel()
    assert shown["status"] == "running" and shown["ink"] > 50, "a curve is drawn"
    assert "training" in shown["figures"] and "/100000" in shown["figures"]
    canvas.shot("running")

    canvas.press("pause")
    canvas.wait_panel("panel.state.status === 'paused'")
    canvas.shot("paused")
    canvas.press("resume")
    canvas.wait_panel("panel.state.status === 'running'")
    canvas.press("save")
    canvas.wait_panel("panel.advice.textContent.includes('checkpoint is saved')")

    run = client.get_json("/lora_kiln/runs")["runs"][-1]
    canvas.open()  # reload
    canvas.load(steps=100_000)
    canvas.wait_panel(f"panel.chart.steps.length >= {run['step']}")
    assert (
        canvas.page.evaluate(
            "() => (window.app.graph.nodes ?? window.app.graph._nodes)"
            ".find(n => n.type === 'KilnTrainLora').kilnPanel.chart.steps[0]"
        )
        == 1
    ), "the beginning is back too"
    canvas.shot("reloaded")

    canvas.finish()
    canvas.wait_panel("panel.state.status === 'stopped'")
    canvas.wait_panel("panel.advice.textContent.startsWith('stopped after')")
    canvas.shot("finished")
    client.interrupt()


def test_preset_fills_the_widgets(canvas: Canvas) -> None:
    canvas.load(steps=123)
    values = canvas.page.evaluate(
        """() => {
            const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');
            const widget = name => node.widgets.find(w => w.name === name);
            const read = () => Object.fromEntries(['preset', 'steps', 'rank'].map(n => [n, widget(n).value]));
            const seen = [read()];
            widget('preset').value = 'character';
            widget('preset').callback('character');
            seen.push(read());
            widget('rank').value = 17;
            widget('rank').callback(17);
            seen.push(read());
            return seen;
        }"""
    )
    assert values[0] == {"preset": "custom", "steps": 123, "rank": 16}
    assert values[1] == {"preset": "character", "steps": 2000, "rank": 96}
    assert values[2] == {"preset": "custom", "steps": 2000, "rank": 17}


@pytest.mark.parametrize("settings", [NODES_2], ids=["nodes2"])
def test_nodes_2_shows_the_panel_too(canvas: Canvas) -> None:
    canvas.load(steps=30)
    queue(canvas)
    canvas.wait_panel("panel.state?.status === 'done' && panel.chart.steps.length === 30")
    canvas.shot("nodes2")


def test_progress_and_memory_are_said_once(canvas: Canvas) -> None:
    canvas.load(steps=100_000)
    queue(canvas)
    canvas.wait_panel("panel.chart.steps.length > 20")
    memory = canvas.page.locator(".kiln-estimate")
    expect(memory).to_have_text(re.compile(r"^Memory of this run: about [\d.]+ GiB at level resident\.$"))
    node = canvas.page.evaluate(
        f"""() => {{ {NODE}
            const host = node.widgets.find(w => w.name === '$$node-text-preview');
            const panel = node.widgets.find(w => w.name === 'kiln_panel');
            return {{hidden: host?.hidden ?? true, room: panel.computedHeight, text: node.kilnPanel.root.innerText}};
        }}"""
    )
    assert node["hidden"], "the host's text would say the progress once more"
    assert node["text"].count("left") == 1 and node["text"].count("/100000") == 1
    assert node["text"].count("GiB") == 1
    assert node["room"] > 350, "nor does it take the panel's room"
    canvas.finish()
    canvas.wait_panel("panel.state.status === 'stopped'")
    expect(memory).to_contain_text("Memory: about")


def test_a_node_shows_its_own_run_only(canvas: Canvas) -> None:
    canvas.load(steps=12)
    queue(canvas)
    canvas.wait_panel("panel.state?.status === 'done'")
    own, canvas.workflow = canvas.workflow, str(uuid.uuid4())
    canvas.load(steps=12)  # another graph with nodes of the same ids
    canvas.page.evaluate(
        "async () => (await import('/extensions/comfyui-lora-kiln/panel.mjs')).reattach(window.app)"
    )
    assert canvas.panel()["status"] is None and canvas.panel()["points"] == 0
    canvas.workflow = own
    canvas.load(steps=12)
    canvas.wait_panel("panel.state?.status === 'done' && panel.chart.steps.length === 12")


def test_the_side_panel_leaves_the_width_alone(canvas: Canvas) -> None:
    """Newer frontends list a selected node's widgets at the side, and write their width into them."""
    canvas.load(steps=12)
    before = canvas.page.evaluate(WIDTH)
    toggle = canvas.page.get_by_label("Toggle properties panel")
    if toggle.count():
        toggle.click()
    canvas.page.evaluate(f"() => {{ {NODE} window.app.canvas.selectNode(node); }}")
    if toggle.count():
        expect(canvas.page.get_by_text("learning_rate", exact=True).first).to_be_visible()
    canvas.page.wait_for_function(f"before => ({WIDTH})() === before", arg=before)
    canvas.page.evaluate(f"() => {{ {NODE} node.widgets.find(w => w.name === 'kiln_panel').width = 1408; }}")
    canvas.page.evaluate("() => window.app.canvas.draw(true, true)")
    assert canvas.page.evaluate(WIDTH) == before
    canvas.shot("selected")


def test_labels_follow_the_theme_at_once(canvas: Canvas) -> None:
    canvas.load(steps=12)
    queue(canvas)
    canvas.wait_panel("panel.state?.status === 'done'")
    assert canvas.page.evaluate(f"() => {{ {NODE} return node.kilnPanel.chart.dark; }}")
    drawn = canvas.page.evaluate(f"() => {{ {NODE} return node.kilnPanel.chart.drawn; }}")
    canvas.page.evaluate("() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    try:
        canvas.wait_panel(f"!panel.chart.dark && panel.chart.drawn > {drawn}")
        canvas.shot("light")
    finally:
        canvas.page.evaluate("() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    canvas.wait_panel("panel.chart.dark")


def test_finish_asks_and_stop_keeps_a_checkpoint(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=100_000)
    queue(canvas)
    canvas.wait_panel("panel.chart.steps.length > 5")
    canvas.press("finish")
    expect(canvas.page.get_by_role("alertdialog")).to_contain_text("goes on to the nodes behind")
    canvas.shot("asks")
    canvas.press("keepTraining")
    expect(canvas.page.get_by_role("alertdialog")).to_have_count(0)
    seen = canvas.panel()["points"]
    canvas.wait_panel(f"panel.state.status === 'running' && panel.chart.steps.length > {seen}")
    run = client.get_json("/lora_kiln/runs")["runs"][-1]["run"]
    canvas.press("stop")
    canvas.wait_panel("panel.state.status === 'stopped'")
    canvas.wait_panel("panel.advice.textContent.includes('checkpoint and LoRA')")
    listed = client.get_json(f"/lora_kiln/history?words={run}")["runs"]
    assert listed[0]["resumable"]
    while (queue_now := client.get_json("/queue"))["queue_running"] or queue_now["queue_pending"]:
        canvas.page.wait_for_timeout(100)
    history = client.get_json("/history?max_items=1")
    assert "interrupted" in (failure_of(next(iter(history.values()))) or ""), "the nodes behind did not run"


def test_an_error_is_said_on_the_node_and_in_a_toast(canvas: Canvas) -> None:
    canvas.load(steps=12)
    canvas.page.evaluate(
        f"""() => {{ {NODE}
            node.widgets.find(w => w.name === 'resume').value = '20200101-000000-aaaa step 5';
            window.app.queuePrompt(0);
        }}"""
    )
    sentence = "There is no checkpoint '20200101-000000-aaaa step 5' any more."
    expect(canvas.page.locator(".kiln-panel [role=alert]")).to_contain_text(sentence)
    expect(in_a_toast(canvas, sentence)).to_be_visible()
    canvas.shot("trainer")


@pytest.mark.parametrize("settings", [{}, NODES_2], ids=["canvas", "nodes2"])
def test_an_error_of_a_node_without_a_panel(canvas: Canvas) -> None:
    canvas.load(steps=12)
    canvas.page.evaluate(
        """() => {
            const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
            const data = nodes.find(n => n.type === 'KilnLoadDataset');
            data.widgets.find(w => w.name === 'folder').value = 'nowhere';
            window.app.canvas.ds.scale = 1;
            window.app.canvas.ds.offset = [300 - data.pos[0], 160 - data.pos[1]];
            window.app.queuePrompt(0);
        }"""
    )
    expect(canvas.page.locator(".kiln_error")).to_contain_text("'nowhere' does not exist")
    expect(in_a_toast(canvas, "does not exist")).to_be_visible()
    canvas.shot("dataset")
    canvas.page.evaluate(
        """() => {
            const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
            const data = nodes.find(n => n.type === 'KilnLoadDataset');
            data.widgets.find(w => w.name === 'folder').value = 'tiny_concept';
            window.app.queuePrompt(0);
        }"""
    )
    expect(canvas.page.locator(".kiln_error")).to_have_count(0)
    canvas.wait_panel("panel.state?.status === 'done'")


def test_no_steps_run_nothing_else(canvas: Canvas, client: HostClient) -> None:
    """The host would run the samplers that do not need the LoRA and call that a success."""
    canvas.load(steps=0)
    before = client.get_json("/history")
    answer = canvas.page.evaluate(
        """async () => {
            const {output, workflow} = await window.app.graphToPrompt();
            const body = JSON.stringify({prompt: output, extra_data: {extra_pnginfo: {workflow}}});
            const answer = await fetch('/api/prompt', {method: 'POST', body});
            return {status: answer.status, said: await answer.json()};
        }"""
    )
    assert answer["status"] == 400, answer
    errors = [e for n in answer["said"]["node_errors"].values() for e in n["errors"]]
    assert [e["extra_info"]["input_name"] for e in errors] == ["steps"]
    queue(canvas)
    said = re.compile("Value 0 smaller than min of 1|below the minimum 1")  # 1.32.9; 1.58.1
    expect(canvas.page.get_by_text(said).first).to_be_visible()
    canvas.shot("refused")
    assert client.get_json("/history") == before
