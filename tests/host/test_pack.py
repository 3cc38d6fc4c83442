"""What the host sees of the pack: light at start, workflows that fit, texts and pages in place."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from scripts.host import RunningHost
from scripts.host_client import HostClient
from scripts.host_files import REPO, get_host
from scripts.workflow_graph import inputs_of, is_widget, to_prompt

TEMPLATES = sorted((REPO / "workflows").glob("*.json"))
REAL = REPO / "workflows" / "2 Wan 2.1 1.3B - pictures, with samples.json"
WORKFLOWS = [
    *TEMPLATES,
    REPO / "tests" / "tiny_wan" / "workflows" / "train_then_sample_tiny.json",
]
MODEL_FILES = ("unet_name", "ckpt_name", "vae_name", "clip_name", "clip_name1", "clip_name2", "lora_name")
OWN_FILES = ("image", "folder")  # pictures of the user's
HEAVY = ("peft", "diffusers", "accelerate", "transformers.modeling_utils", "torchvision.transforms.v2")


def test_nothing_heavy_is_imported_at_start() -> None:
    """Importing the nodes costs milliseconds because peft and diffusers wait for the first run."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import inprocess; inprocess.start(); before = set(sys.modules);"
        "import lora_kiln.nodes.extension; print([m for m in sys.modules if m not in before])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        cwd=get_host(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = set(quoted(done.stdout.splitlines()[-1]))
    assert any(name.endswith("nodes.training") for name in loaded)
    assert not {name for name in loaded if name.startswith(HEAVY)}


def quoted(text: str) -> list[str]:
    return re.findall(r"'([^']+)'", text)


def test_the_log_holds_no_warning_of_ours(host: RunningHost) -> None:
    started = host.read_log().partition("To see the GUI go to")[0]
    lines = [line for line in started.splitlines() if re.search(r"warn|error", line, re.IGNORECASE)]
    assert not [line for line in lines if "lora-kiln" in line or "tiny_wan" in line], lines


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow_fits_the_nodes(path: Path, client: HostClient) -> None:
    info = client.object_info()
    workflow = json.loads(path.read_text("utf-8"))
    prompt = to_prompt(workflow, info)
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        specs = inputs_of(info, node["type"])
        sockets = [name for name, spec in specs.items() if not is_widget(spec)]
        assert [i["name"] for i in node["inputs"] if "widget" not in i] == sockets, node["type"]
    for node in prompt.values():
        for name, spec in inputs_of(info, node["class_type"]).items():
            value = node["inputs"].get(name)
            options = (
                spec[0] if isinstance(spec[0], list) else (spec[1].get("options") if len(spec) > 1 else None)
            )
            model_file = name in (*MODEL_FILES, *OWN_FILES)
            if options is not None and not model_file:
                options = [
                    o["key"] if isinstance(o, dict) else o for o in options
                ]  # host 0.33: dynamic choices
                assert value in options, (node["class_type"], name, value)
    text = path.read_text("utf-8")
    assert not re.search(r'"(/|[A-Za-z]:\\|~)', text), "an absolute path"
    assert path.with_suffix(".jpg").stat().st_size > 2000, "the thumbnail is missing"


def test_presets_and_settings_of_the_real_workflow(client: HostClient) -> None:
    prompt = to_prompt(json.loads(REAL.read_text("utf-8")), client.object_info())
    (train,) = (n["inputs"] for n in prompt.values() if n["class_type"] == "KilnTrainLora")
    assert (train["preset"], train["steps"], train["rank"], train["learning_rate"]) == (
        "standard",
        1500,
        64,
        1e-4,
    )
    files = {n["inputs"].get(k) for n in prompt.values() for k in ("unet_name", "clip_name", "vae_name")} - {
        None
    }
    assert files == {
        "wan2.1_t2v_1.3B_fp16.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "wan_2.1_vae.safetensors",
    }


def test_templates_are_listed_apart(client: HostClient) -> None:
    """A user's template browser lists the real workflow; the tiny one belongs to the demo pack."""
    templates: dict[str, Any] = client.get_json("/api/workflow_templates")
    assert sorted(templates["comfyui-lora-kiln"]) == sorted(path.stem for path in TEMPLATES)
    assert templates["tiny_wan_demo"] == ["train_then_sample_tiny"]
    picture = client.request(f"/api/workflow_templates/comfyui-lora-kiln/{quote(REAL.stem)}.jpg")
    assert picture.startswith(b"\xff\xd8")


def test_nodes_are_listed_in_a_tree_and_by_other_words(client: HostClient) -> None:
    ours = {k: v for k, v in client.object_info().items() if k.startswith("Kiln")}
    shelves = {node["category"] for node in ours.values()}
    assert shelves == {f"LoRA Kiln/{shelf}" for shelf in ("data", "train", "settings", "use", "tools")}
    if "search_aliases" in ours["KilnTrainLora"]:  # host 0.33
        assert all(len(node["search_aliases"]) >= 3 for node in ours.values())


def test_web_files_and_texts_are_served(client: HostClient) -> None:
    assert "/extensions/comfyui-lora-kiln/kiln.js" in client.get_json("/extensions")
    assert b"registerExtension" in client.request("/extensions/comfyui-lora-kiln/kiln.js")
    for name in (n for n in client.object_info() if n.startswith("Kiln")):
        for page in (f"{name}.md", f"{name}/zh.md"):
            assert client.request(f"/extensions/comfyui-lora-kiln/docs/{page}").startswith(b"# ")
    texts = client.get_json("/api/i18n")
    for language in ("en", "zh"):
        assert "KilnTrainLora" in texts[language]["nodeDefs"]
