"""Going on with a run, in one click on the panel."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from scripts.host_client import HostClient

from .conftest import Canvas

SET = """([kind, name, value]) => {
    const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === kind);
    node.widgets.find(w => w.name === name).value = value;
}"""
RESUME = """() => (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora')
    .widgets.find(w => w.name === 'resume').value"""


def queue(canvas: Canvas) -> None:
    canvas.page.evaluate("() => window.app.queuePrompt(0)")


def newest(client: HostClient) -> str:
    run: str = client.get_json("/lora_kiln/runs")["runs"][-1]["run"]
    return run


def test_a_stopped_run_goes_on_with_one_click(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=100_000)
    expect(canvas.page.locator("[data-kiln=resumeHere]")).to_have_count(0)
    queue(canvas)
    canvas.wait_panel("panel.chart.steps.length > 5")
    run = newest(client)
    client.interrupt()
    canvas.wait_panel("panel.state.status === 'stopped'")
    canvas.open()  # the page was closed meanwhile
    canvas.load(steps=100_000)
    canvas.wait_panel("panel.state?.status === 'stopped'")
    stopped_at = client.get_json(f"/lora_kiln/runs/{run}")["checkpoint"]
    offer = canvas.page.locator("[data-kiln=resumeHere]")
    expect(offer).to_have_text(f"Resume {stopped_at} / 100000")
    canvas.shot("offer")
    offer.click()
    canvas.wait_panel(f"panel.state.status === 'running' && panel.state.step > {stopped_at}")
    assert newest(client) == run and canvas.page.evaluate(RESUME) == "new run"
    expect(offer).to_have_count(0)
    canvas.press("stop")
    canvas.wait_panel("panel.state.status === 'stopped'")
    last = client.get_json(f"/lora_kiln/runs/{run}")["checkpoint"]
    canvas.page.evaluate(SET, ["KilnTrainLora", "steps", last])
    canvas.page.evaluate("() => window.app.graph.nodes?.find(n => n.kilnPanel)?.kilnPanel.refresh()")
    expect(offer).to_have_text(f"Resume {last} / {last}")
    canvas.page.evaluate(SET, ["KilnTrainLora", "steps", 1])
    canvas.page.evaluate("() => window.app.graph.nodes?.find(n => n.kilnPanel)?.kilnPanel.refresh()")
    expect(offer).to_have_count(0)  # it has done more
    canvas.page.evaluate(SET, ["KilnTrainLora", "steps", last])
    canvas.page.evaluate("() => window.app.graph.nodes?.find(n => n.kilnPanel)?.kilnPanel.refresh()")
    offer.click()  # nothing is left to train, and its LoRA is wanted
    canvas.wait_panel("panel.state.status === 'done'")
    assert newest(client) == run


def test_a_changed_caption_is_named_and_gone_on_with(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=14)
    queue(canvas)
    canvas.wait_panel("panel.state?.status === 'done'")
    run = newest(client)
    canvas.page.evaluate(SET, ["KilnCaptionTemplate", "template", "{caption}, mended"])
    canvas.page.evaluate(SET, ["KilnTrainLora", "steps", 17])
    canvas.page.evaluate(SET, ["KilnTrainLora", "resume", run])
    queue(canvas)
    alert = canvas.page.locator(".kiln-panel [role=alert]")
    expect(alert).to_contain_text(
        re.compile(rf"{run} cannot be resumed: \d+ of its \d+ captions are others now"),
        timeout=120_000,  # the first graph draws its samples before
    )
    canvas.shot("named")
    # The error dialog of older frontends lies over the panel, and may come later than our sentence
    canvas.page.add_locator_handler(
        canvas.page.locator(".p-dialog-mask"), lambda: canvas.page.keyboard.press("Escape")
    )
    canvas.page.get_by_role("button", name="Go on from step 14 anyway").click()
    canvas.wait_panel("panel.state?.status === 'done' && panel.state.total === 17")
    canvas.wait_panel("panel.chart.steps.length === 17")  # with the curve of its parent
    assert newest(client) != run
    expect(canvas.page.locator(".kiln-panel")).to_contain_text(f"goes on from step 14 of the run {run}")
    assert canvas.page.evaluate(RESUME) == run
    canvas.shot("gone_on")


def test_latest_that_begins_anew_says_why(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=14)
    queue(canvas)
    canvas.wait_panel("panel.state?.status === 'done'")
    run = newest(client)
    canvas.page.evaluate(SET, ["KilnTrainLora", "rank", 5])
    canvas.page.evaluate(SET, ["KilnTrainLora", "resume", "latest"])
    queue(canvas)
    canvas.wait_panel(f"panel.state?.status === 'done' && panel.state.run !== '{run}'")
    said = re.compile("A new run: the run.*its rank is 16 and is 5 now", re.DOTALL)
    expect(canvas.page.locator(".kiln-panel")).to_contain_text(said)
