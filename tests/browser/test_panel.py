"""The panel on the training node, as a user sees it."""

from __future__ import annotations

import pytest

from scripts.host_client import HostClient

from .conftest import NODES_2, Canvas


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

    canvas.press("stop")
    canvas.wait_panel("panel.state.status === 'stopped'")
    assert canvas.panel()["text"].startswith("stopped after")
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
