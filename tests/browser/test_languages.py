"""English and Chinese: node names, tooltips, the panel and the runs tab follow the host's setting."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from .conftest import CHINESE, NODES_2, RUNS_TAB, Canvas

PREVIEWS = """() => (window.app.graph.nodes ?? window.app.graph._nodes)
    .filter(n => n.type.startsWith('Kiln') && !n.kilnPanel && n.type !== 'KilnCaptionTemplate')
    .flatMap(n => n.widgets ?? []).filter(w => w.name === '$$node-text-preview').map(w => w.value)"""
CHARACTERS = re.compile("[\u4e00-\u9fff]")


def title(canvas: Canvas) -> str:
    shown: str = canvas.page.evaluate("() => LiteGraph.registered_node_types.KilnTrainLora.title")
    return shown


def test_switching_to_chinese_and_back(canvas: Canvas) -> None:
    canvas.load(steps=10)
    assert title(canvas) == "Train LoRA (LoRA Kiln)"
    switch(canvas, "zh")
    canvas.page.wait_for_function(
        "() => /[\u4e00-\u9fff]/.test(LiteGraph.registered_node_types.KilnTrainLora.title)"
    )
    canvas.look()
    expect(canvas.page.locator("button[data-kiln=save]")).to_have_text(CHARACTERS)
    canvas.page.click(RUNS_TAB)
    expect(canvas.page.locator(".kiln-runs select option").first).to_have_text(CHARACTERS)
    canvas.shot("switched")
    switch(canvas, "en")
    canvas.page.wait_for_function(
        "() => LiteGraph.registered_node_types.KilnTrainLora.title === 'Train LoRA (LoRA Kiln)'"
    )


@pytest.mark.parametrize("settings", [CHINESE], ids=["zh"])
def test_opened_in_chinese(canvas: Canvas) -> None:
    canvas.load(steps=10)
    assert CHARACTERS.search(title(canvas))
    shown = canvas.page.evaluate(
        """async () => {
            const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');
            const steps = node.widgets.find(w => w.name === 'steps');
            return {steps: steps.label ?? node.inputs.find(i => i.name === 'steps')?.localized_name ?? ''};
        }"""
    )
    assert CHARACTERS.search(shown["steps"]), shown
    canvas.page.evaluate(
        """() => {
            const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
            const node = nodes.find(n => n.type === 'KilnLoadDataset'); // else the server knows what it gave before
            node.widgets.find(w => w.name === 'repeats').value = 3;
            return window.app.queuePrompt(0);
        }"""
    )
    canvas.wait_panel("panel.state?.status === 'done'")
    said = canvas.panel()["text"]
    assert CHARACTERS.search(said) and not re.search(r"\b(steps in|done|loss)\b", said), said
    # The nodes after the training say theirs when the panel has long said that it is done
    canvas.page.wait_for_function(f"({PREVIEWS})().some(text => text.includes('.safetensors'))")
    previews = canvas.page.evaluate(PREVIEWS)
    words = [p for p in previews if not re.fullmatch(r"\S+, [\d.]+ MB", p)]  # a file and its size
    assert words and all(CHARACTERS.search(p) for p in words), previews
    assert not re.search(r"images|captions|items|encoded now|steps per", "".join(previews)), previews
    canvas.page.click(RUNS_TAB)
    canvas.page.wait_for_selector(".kiln-runs .kiln-card")
    canvas.shot("chinese")


# Words of the field, names of formats and what the host lists itself
STAY_ENGLISH = {
    *(
        "lora",
        "dora",
        "loha",
        "lokr",
        "oft",
        "pissa",
        "mode",
        "l2",
        "l1",
        "huber",
        "min_snr",
        "sigma_sqrt",
        "cosmap",
    ),
    *("fp8", "nf4", "fp32", "bf16", "fp16", "comfyui", "kohya", "diffusers", "peft", "768"),
    *("svd", "task_arithmetic", "ties", "dare_linear", "dare_ties", "magnitude_prune"),
    *("SDXL", "Flux", "Qwen-Image", "Z-Image", "LTX-Video"),
    *("Qwen-Image-Edit", "Qwen-Image-Edit Plus", "Wan VACE"),
}
FILES = {"lora_name", "base_name", "tuned_name", "sampler_name", "scheduler"}
OPTIONS = """() => Object.keys(LiteGraph.registered_node_types).filter(t => t.startsWith('Kiln')).flatMap(type => {
    const node = LiteGraph.createNode(type);
    window.app.graph.add(node);
    const combos = node.widgets?.filter(w => Array.isArray(w.options?.values)) ?? [];
    const found = combos.flatMap(w => w.options.values.map(v => [w.name, v, w.options.getOptionLabel?.(v) ?? v]));
    window.app.graph.remove(node);
    return found;
})"""


@pytest.mark.parametrize("settings", [CHINESE, {**CHINESE, **NODES_2}], ids=["zh", "zh-nodes2"])
def test_choices_are_shown_in_chinese_and_stay_english(canvas: Canvas, settings: dict[str, Any]) -> None:
    canvas.load(steps=10)
    options = canvas.page.evaluate(OPTIONS)
    assert len(options) > 80
    english = {
        (combo, value)
        for combo, value, label in options
        if not CHARACTERS.search(label)
        and combo not in FILES
        and not value.endswith(".safetensors")
        and value not in STAY_ENGLISH
    }
    assert not english
    value, drawn = canvas.page.evaluate(
        """() => {
            const node = (window.app.graph.nodes ?? window.app.graph._nodes).find(n => n.type === 'KilnTrainLora');
            const widget = node.widgets.find(w => w.name === 'when_queued');
            return [widget.value, widget._displayValue];
        }"""
    )
    assert value == "wait"
    version = canvas.page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
    if NODES_2.items() <= settings.items() and version != "1.32.9":  # its elements never ask for the label
        expect(canvas.page.get_by_text(drawn).first).to_be_visible()
    assert CHARACTERS.search(drawn), drawn
    canvas.shot("choices")


@pytest.mark.parametrize("settings", [CHINESE], ids=["zh"])
def test_an_error_is_said_in_chinese(canvas: Canvas) -> None:
    canvas.load(steps=10)
    canvas.page.evaluate(
        """() => {
            const nodes = window.app.graph.nodes ?? window.app.graph._nodes;
            nodes.find(n => n.type === 'KilnLoadDataset').widgets.find(w => w.name === 'folder').value = 'nowhere';
            window.app.queuePrompt(0);
        }"""
    )
    expect(canvas.page.locator(".kiln_error")).to_contain_text("\u6ca1\u6709\u6587\u4ef6\u5939 'nowhere'")


@pytest.mark.parametrize("settings", [{**CHINESE, **NODES_2}], ids=["zh-nodes2"])
def test_chinese_in_nodes_2(canvas: Canvas) -> None:
    canvas.load(steps=10)
    expect(canvas.page.get_by_text("\u8bad\u7ec3 LoRA").first).to_be_visible()
    canvas.shot("nodes2")


def switch(canvas: Canvas, language: str) -> None:
    canvas.page.evaluate(
        "language => window.app.extensionManager.setting.set('Comfy.Locale', language)", language
    )
