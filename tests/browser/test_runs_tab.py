"""The runs tab in the sidebar, as a user works with it."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
from typing import Any

import pytest
from playwright.sync_api import expect

from scripts.host import RunningHost
from scripts.host_client import HostClient
from trainer.config import TrainConfig

from .conftest import RUNS_TAB, Canvas, done_now, finished


@pytest.fixture
def tab(canvas: Canvas, client: HostClient) -> Any:
    """The tab, open beside the tiny demo's graph, with at least the two runs of `two_runs` in it."""
    canvas.load(steps=12)
    while len(two_runs(client)) < 2:
        before = done_now(client)
        canvas.page.evaluate(
            """seed => {
                const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
                const node = nodes.find(n => n.type === 'KilnTrainLora');
                node.widgets.find(w => w.name === 'seed').value = seed;
                window.app.queuePrompt(0);
            }""",
            before,  # another graph each time: the server would not train one again
        )
        finished(client, before + 1)
    open_tab(canvas)
    return canvas.page.locator(".kiln-runs")


def two_runs(client: HostClient) -> list[dict[str, Any]]:
    """The newest two runs of this file, newest first; fewer at first, and after the test that deletes one."""
    runs = client.get_json("/lora_kiln/history?limit=200")["runs"]
    return [run for run in runs if run["config"]["steps"] == 12][:2]


def open_tab(canvas: Canvas) -> None:
    canvas.page.click(RUNS_TAB)
    canvas.page.wait_for_selector(".kiln-runs .kiln-card")


def wait_widgets(canvas: Canvas, values: dict[str, Any]) -> None:
    """Wait until the training node's widgets have these values."""
    canvas.page.wait_for_function(
        """values => {
            const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
            const node = nodes.find(n => n.type === 'KilnTrainLora');
            const shown = Object.fromEntries((node?.widgets ?? []).map(w => [w.name, w.value]));
            return Object.entries(values).every(([name, value]) => shown[name] === value);
        }""",
        arg=values,
    )


def test_list_compare_and_rate(canvas: Canvas, client: HostClient, tab: Any) -> None:
    newest, older = (run["id"] for run in two_runs(client))
    card = tab.locator(f"[data-run='{newest}']")
    expect(card).to_contain_text("rank 16")
    expect(card).to_contain_text("12 of 12 steps")
    expect(card).to_contain_text("done")
    for run in (newest, older):
        tab.locator(f"[data-run='{run}'] input[type=checkbox]").check()
    expect(tab.locator(".kiln-legend span")).to_have_count(2)
    expect(tab.locator("section canvas").first).to_be_visible()
    card.get_by_label("4 of 5 stars").click()
    card.get_by_label(f"Notes on run {newest}").fill("good hands")
    card.get_by_label(f"Notes on run {newest}").press("Enter")
    expect(card.get_by_label("4 of 5 stars")).to_have_attribute("aria-pressed", "true")
    canvas.shot("compared")
    canvas.page.wait_for_function(
        """async run => {
            const answer = await fetch('/api/lora_kiln/history?words=' + run);
            return (await answer.json()).runs[0].notes === 'good hands';
        }""",
        arg=newest,
    )
    tab.locator("input[type=search]").fill("good hands")
    expect(tab.locator(".kiln-card")).to_have_count(1)
    expect(tab.locator("section canvas").first).to_be_visible()
    tab.locator("input[type=search]").fill("no run holds this")
    expect(tab.locator("[role=status]")).to_have_text("No run holds these words.")


def test_use_settings_resume_and_open_graph(canvas: Canvas, client: HostClient, tab: Any) -> None:
    run = two_runs(client)[0]
    card = tab.locator(f"[data-run='{run['id']}']")
    canvas.page.evaluate(
        """() => {
            const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');
            for (const w of node.widgets) if (['steps', 'rank', 'seed'].includes(w.name)) w.value = 77;
        }"""
    )
    card.locator("[data-kiln=useSettings]").click()
    canvas.page.wait_for_function(
        """() => (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora')
            .widgets.find(w => w.name === 'steps').value === 12"""
    )
    wait_widgets(canvas, {"steps": 12, "rank": 16, "seed": run["config"]["seed"]})
    card.locator("[data-kiln=resumeRun]").click()
    wait_widgets(canvas, {"resume": run["id"]})
    card.locator("[data-kiln=showLora]").click()
    expect(card.get_by_label("Path of the LoRA, below ComfyUI's folder")).to_have_value(run["lora"])
    canvas.shot("used")
    canvas.page.evaluate("() => window.app.graph.clear()")
    card.locator("[data-kiln=useSettings]").click()
    expect(canvas.page.get_by_text("There is no Train LoRA node in this graph").last).to_be_visible()
    card.locator("[data-kiln=openGraph]").click()
    canvas.page.wait_for_function(
        "() => (window.app.graph.nodes ?? window.app.graph._nodes).some(n => n.type === 'KilnTrainLora')"
    )
    wait_widgets(canvas, {"seed": run["config"]["seed"]})


def test_items_with_the_highest_and_the_lowest_loss(canvas: Canvas, client: HostClient, tab: Any) -> None:
    run = two_runs(client)[0]["id"]
    card = tab.locator(f"[data-run='{run}']")
    card.locator("[data-kiln=showItems]").click()
    highest = card.get_by_label("Highest loss: does the caption belong to the picture?")
    expect(highest.locator("figure").first).to_contain_text("zorb_")
    expect(card.get_by_label("Lowest loss: known by heart?").locator("figure").first).to_contain_text(
        " x zorb_"
    )
    for picture in highest.locator("img").all():
        expect(picture).to_have_js_property("naturalWidth", 64)
    card.scroll_into_view_if_needed()
    canvas.shot("items")


def test_what_a_run_without_metadata_did_not_keep_is_said(
    canvas: Canvas, client: HostClient, tab: Any
) -> None:
    """Its hard items have numbers and no names, its filmstrip pictures and no prompts."""
    run = two_runs(client)[1]["id"]
    items = [
        {
            "number": n,
            "name": "",
            "times": 2.0 - n,
            "loss": 1.0,
            "draws": 9,
            "stands_out": False,
            "picture": "",
        }
        for n in (1, 2)
    ]
    canvas.page.route(
        "**/lora_kiln/history/*/items", lambda r: r.fulfill(json={"high": items[:1], "low": items[1:]})
    )
    card = tab.locator(f"[data-run='{run}']")
    card.locator("[data-kiln=showItems]").click()
    expect(card.locator("figcaption").first).to_contain_text("name not kept: embed_metadata off")
    title = canvas.page.evaluate(
        """async () => {
            const { Filmstrip } = await import('/extensions/comfyui-lora-kiln/filmstrip.mjs');
            const film = new Filmstrip();
            film.show('x', [{ step: 20, place: 0, prompt: '', animated: false }]);
            return film.root.querySelector('button').title;
        }"""
    )
    assert title == "step 20  \u00b7  its prompt was not kept (embed_metadata off)"


def test_missing_settings_nodes_are_added(canvas: Canvas, tab: Any) -> None:
    """A run of other settings than the defaults is repeated by the graph alone."""
    found = canvas.page.evaluate(
        """async () => {
            const { useSettings } = await import('/extensions/comfyui-lora-kiln/graph_actions.mjs');
            const runs = await (await fetch('/api/lora_kiln/history?limit=1')).json();
            const run = runs.runs[0];
            run.config.optimizer.weight_decay = 0.25;
            run.config.objective.weighting = 'min_snr';
            run.changed = {optimizer: {weight_decay: 0.25}, objective: {weighting: 'min_snr'}};
            const graph = window.app.graph, nodes = () => graph.nodes ?? graph._nodes;
            const node = nodes().find(n => n.type === 'KilnTrainLora');
            const said = useSettings(node, run);
            const prompt = (await window.app.graphToPrompt()).output;
            return {said, prompt, id: node.id};
        }"""
    )
    prompt = found["prompt"]
    seen = {}
    link = prompt[str(found["id"])]["inputs"]["settings"]
    while link:
        inputs = prompt[link[0]]["inputs"]
        seen[prompt[link[0]]["class_type"]] = inputs
        link = inputs.get("settings")
    assert seen["KilnOptimizerSettings"]["weight_decay"] == 0.25
    assert seen["KilnObjectiveSettings"]["weighting"] == "min_snr"
    assert "need a settings node" not in found["said"]


def test_deleting_asks_first(canvas: Canvas, host: RunningHost, client: HostClient, tab: Any) -> None:
    run = two_runs(client)[0]["id"]
    folder = host.base / "user" / "__lora_kiln" / "runs" / run
    card = tab.locator(f"[data-run='{run}']")
    card.locator("[data-kiln=delete]").click()
    expect(card.locator("[role=alertdialog]")).to_contain_text("the LoRA in the run's folder")
    canvas.shot("asks")
    card.get_by_role("button", name="Keep it").press("Escape")
    expect(card.locator("[role=alertdialog]")).to_have_count(0)
    assert folder.is_dir()
    card.locator("[data-kiln=delete]").click()
    card.locator("[data-kiln=reallyDelete]").click()
    expect(card).to_have_count(0)
    assert not folder.exists()


def test_a_thousand_runs(canvas: Canvas, host: RunningHost, client: HostClient, tab: Any) -> None:
    add_runs(host, 1000)
    tab.get_by_role("button", name="Reload").click()
    expect(tab.locator("[role=status]")).to_contain_text("runs.")
    tab.locator("input[type=search]").fill("many")
    expect(tab.locator("[role=status]")).to_contain_text("1000 runs.")
    expect(tab.locator(".kiln-card")).to_have_count(30)  # a page at a time
    tab.get_by_role("button", name="Show more").click()
    expect(tab.locator(".kiln-card")).to_have_count(60)
    canvas.shot("thousand")
    tab.locator("select").select_option("loss")
    expect(tab.locator(".kiln-card").first).to_contain_text("many-0000")


def add_runs(host: RunningHost, count: int) -> None:
    config = json.dumps(TrainConfig().to_dict())
    with sqlite3.connect(host.base / "user" / "__lora_kiln" / "history.db") as db:
        for i in range(count):
            name = f"many-{i:04}"
            db.execute(
                "INSERT OR IGNORE INTO runs (id, started, updated, status, folder, config, dataset, items, held_out, "
                "base_model, step) VALUES (?, ?, 0, 'done', '', ?, '', 10, 0, '', 100)",
                (name, time.time() - 1e6 - i, config),
            )
            points = [(name, s, i + math.sin(s)) for s in range(1, 101)]
            db.executemany("INSERT OR IGNORE INTO points VALUES (?, 'loss', ?, ?)", points)
    db.close()


def test_a_run_is_given_a_name(canvas: Canvas, client: HostClient, tab: Any) -> None:
    run = two_runs(client)[0]["id"]
    card = tab.locator(f"[data-run='{run}']")
    card.get_by_label(f"Name of run {run}").fill("zorb, first try")
    card.get_by_label(f"Name of run {run}").press("Enter")
    tab.locator("input[type=search]").fill("zorb first")
    expect(tab.locator(".kiln-card")).to_have_count(1)
    card.locator("input[type=checkbox]").check()
    expect(tab.locator(".kiln-legend")).to_contain_text("zorb, first try")
    canvas.shot("named")
    card.get_by_label(f"Name of run {run}").fill("")
    card.get_by_label(f"Name of run {run}").press("Enter")
    expect(tab.locator("[role=status]")).to_be_visible()


def press(canvas: Canvas, button: str) -> None:
    """A button of the panel, of which the open tab covers a part."""
    canvas.page.evaluate("name => document.querySelector(`button[data-kiln=${name}]`).click()", button)


def test_a_card_follows_its_run(canvas: Canvas, client: HostClient, tab: Any) -> None:
    """Without the list being made anew: what is typed in the card stays."""
    canvas.load(steps=100_000)
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    canvas.wait_panel("panel.state?.status === 'running'")
    run = client.get_json("/lora_kiln/runs")["runs"][-1]["run"]
    card = tab.locator(f"[data-run='{run}']")
    notes = card.get_by_label(f"Notes on run {run}")
    notes.fill("half a thou")
    line = card.locator("[data-kiln=progress]")
    before = line.text_content()
    expect(line).not_to_have_text(before or "")
    expect(card).to_contain_text("training")
    press(canvas, "pause")
    expect(card).to_contain_text("paused")
    expect(notes).to_have_value("half a thou")
    expect(notes).to_be_focused()
    canvas.shot("follows")
    press(canvas, "resume")
    press(canvas, "stop")
    expect(card.locator("[data-kiln=resumeRun]")).to_be_enabled()
    expect(notes).to_have_value("half a thou")


def test_no_runs_lead_to_the_templates(canvas: Canvas) -> None:
    nothing = json.dumps({"runs": [], "total": 0})
    canvas.page.route(
        re.compile("/lora_kiln/history\\?"),
        lambda r: r.fulfill(body=nothing, content_type="application/json"),
    )
    canvas.page.click(RUNS_TAB)
    tab = canvas.page.locator(".kiln-runs")
    expect(tab.locator("[role=status]")).to_contain_text("No run yet")
    canvas.shot("empty")
    tab.get_by_role("button", name="Browse templates").click()
    expect(canvas.page.get_by_text("tiny_wan_demo").first).to_be_visible()
