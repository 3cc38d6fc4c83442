"""The filmstrip of samples on the training node, and what a user does with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts.host_client import HostClient

from .conftest import NODES_2, Canvas

SETTINGS = {
    "prompts": "a red circle\na blue square",
    "every": 20,
    "width": 64,
    "height": 64,
    "length": 5,
    "sampler_steps": 4,
    "cfg": 3.0,
}


def connect_samples(canvas: Canvas, seed: int) -> None:
    """Put a Sample Settings node into the loaded graph; another seed makes it another graph, which is not cached."""
    canvas.page.evaluate(
        """values => {
            const graph = window.app.graph, nodes = graph.nodes ?? graph._nodes;
            const find = type => nodes.find(n => n.type === type);
            for (const node of nodes) if (node.pos[1] > find('KilnTrainLora').pos[1] + 400) node.pos[1] += 600;
            const made = window.LiteGraph.createNode('KilnSampleSettings');
            graph.add(made);
            made.pos = [-900, 0];
            for (const [name, value] of Object.entries(values)) made.widgets.find(w => w.name === name).value = value;
            const input = (node, name) => node.inputs.findIndex(i => i.name === name);
            find('TinyWanTextEncoder').connect(0, made, input(made, 'clip'));
            find('VAELoader').connect(0, made, input(made, 'vae'));
            const train = find('KilnTrainLora');
            const before = train.inputs[input(train, 'settings')].link;
            if (before != null) {
                const link = graph.links.get?.(before) ?? graph.links[before];
                graph.getNodeById(link.origin_id).connect(link.origin_slot, made, input(made, 'settings'));
            }
            made.connect(0, train, input(train, 'settings'));
        }""",
        {**SETTINGS, "sample_seed": seed},
    )


def look_from_afar(canvas: Canvas) -> None:
    """The whole node into view, with nothing below it: Nodes 2.0 draws it taller, and the strip makes it grow."""
    canvas.page.evaluate(
        """() => {
            const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
            const node = nodes.find(n => n.type === 'KilnTrainLora');
            for (const other of nodes) if (other.pos[1] > node.pos[1] + 400) other.pos[1] += 600;
            const view = window.app.canvas.ds;
            view.scale = 0.6;
            view.offset[0] = 500 - node.pos[0];
            view.offset[1] = 200 - node.pos[1];
            window.app.canvas.setDirty(true, true);
        }"""
    )


def film(canvas: Canvas) -> list[dict[str, Any]]:
    """Every thumbnail: its title, its label, and whether its picture is there."""
    found: list[dict[str, Any]] = canvas.page.evaluate(
        """() => [...document.querySelectorAll('.kiln-film button')].map(b => ({
            key: b.dataset.key, title: b.title, label: b.textContent, alt: b.querySelector('img').alt,
            drawn: b.querySelector('img').naturalWidth > 0}))"""
    )
    return found


@pytest.mark.parametrize("settings", [{}, NODES_2], ids=["canvas", "nodes2"])
def test_filmstrip_grows_enlarges_and_survives_a_reload(
    canvas: Canvas, client: HostClient, settings: dict[str, Any]
) -> None:
    vue = settings == NODES_2
    canvas.load(steps=100_000)
    connect_samples(canvas, seed=int(vue))
    look_from_afar(canvas) if vue else canvas.look()
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    canvas.wait_panel("panel.state?.status === 'running' && panel.state.total === 100000")
    canvas.page.wait_for_selector(".kiln-film button[data-key='0-1']")
    canvas.page.wait_for_selector(".kiln-film button[data-key='20-1']")
    canvas.press("sample")
    canvas.page.wait_for_function("document.querySelectorAll('.kiln-film button').length >= 6")
    canvas.press("pause")
    canvas.wait_panel("panel.state.status === 'paused'")
    canvas.page.wait_for_function(
        "[...document.querySelectorAll('.kiln-film img')].slice(0, 4).every(i => i.naturalWidth > 0)"
    )
    shown = film(canvas)
    assert shown[0]["title"] == "without the LoRA  \u00b7  a red circle" and shown[0]["label"] == "base"
    assert shown[0]["alt"] == shown[0]["title"]
    assert [s for s in shown if s["title"] == "step 20  \u00b7  a blue square"]
    canvas.shot("filmstrip")

    # Large, by keyboard alone
    canvas.page.focus(".kiln-film button[data-key='0-0']")
    canvas.page.keyboard.press("Enter")
    canvas.page.wait_for_selector("dialog.kiln-sample[open]")
    canvas.page.keyboard.press("ArrowRight")
    canvas.page.keyboard.press("ArrowDown")
    large = canvas.page.wait_for_selector("dialog.kiln-sample img[alt^='step 20']")
    assert large is not None and "samples/20-1.webp" in str(large.get_attribute("src"))
    canvas.page.wait_for_function("document.querySelector('dialog.kiln-sample img').naturalWidth === 64")
    canvas.shot("enlarged")
    canvas.page.keyboard.press("Escape")
    canvas.page.wait_for_selector("dialog.kiln-sample", state="detached")
    assert canvas.page.evaluate("document.activeElement.dataset.key") == "20-1"

    canvas.open()  # reload
    canvas.load(steps=100_000)
    if vue:
        look_from_afar(canvas)
    # A run that is told to pause while it draws finishes its drawing, so there may be more by now
    keys = json.dumps([sample["key"] for sample in shown])
    canvas.page.wait_for_function(
        f"{keys}.every(key => document.querySelector(`.kiln-film button[data-key='${{key}}']`))"
    )
    canvas.shot("reloaded")
    canvas.press("resume")
    canvas.finish()
    canvas.wait_panel("panel.state.status === 'stopped'")
    client.interrupt()


def test_without_sample_settings_there_is_no_strip(canvas: Canvas) -> None:
    canvas.load(steps=10)
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    canvas.wait_panel("panel.state?.status === 'done' && panel.state.total === 10")
    assert film(canvas) == []
    assert not canvas.page.is_visible(".kiln-film")
    assert (
        canvas.page.get_attribute("button[data-kiln=sample]", "title")
        == "Connect Sample Settings to draw samples."
    )


def test_a_sample_dropped_on_the_canvas_brings_its_graph_back(canvas: Canvas, client: HostClient) -> None:
    canvas.load(steps=3)
    connect_samples(canvas, seed=3)
    canvas.page.evaluate("() => window.app.queuePrompt(0)")
    canvas.wait_panel("panel.state?.status === 'done' && panel.state.total === 3")
    run = client.get_json("/lora_kiln/runs")["runs"][-1]["run"]
    for kind, type in (("png", "image/png"), ("webp", "image/webp")):
        canvas.page.evaluate("() => window.app.graph.clear()")
        canvas.page.evaluate(
            """async ([run, kind, type]) => {
                const answer = await fetch(`/lora_kiln/runs/${run}/samples/3-0.${kind}`);
                const data = new DataTransfer();
                data.items.add(new File([await answer.blob()], `sample.${kind}`, {type}));
                const target = document.querySelector('#graph-canvas') ?? document.querySelector('canvas');
                for (const name of ['dragenter', 'dragover', 'drop'])
                    target.dispatchEvent(new DragEvent(name, {bubbles: true, cancelable: true, dataTransfer: data,
                        clientX: 700, clientY: 500}));
            }""",
            [run, kind, type],
        )
        canvas.page.wait_for_function(
            """() => (window.app.graph.nodes ?? window.app.graph._nodes).some(n => n.type === 'KilnSampleSettings'
                && n.widgets.find(w => w.name === 'prompts').value.includes('a blue square'))"""
        )
