"""The shipped templates: small where they say so, true to their notes, with the places of their model files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.host_files import REPO
from trainer.config.presets import PRESETS

TEMPLATES = sorted((REPO / "workflows").glob("*.json"))
TRAINING = [path for path in TEMPLATES if '"KilnTrainLora"' in path.read_text("utf-8")]
LOADERS = ("UNETLoader", "CheckpointLoaderSimple", "CLIPLoader", "DualCLIPLoader", "VAELoader")


def nodes_of(path: Path, *kinds: str) -> list[dict[str, Any]]:
    workflow = json.loads(path.read_text("utf-8"))
    return [node for node in workflow["nodes"] if not kinds or node["type"] in kinds]


def note_of(path: Path) -> str:
    (note,) = nodes_of(path, "MarkdownNote")
    return str(note["widgets_values"][0])


def test_there_is_a_starter_of_nine_nodes() -> None:
    (starter,) = [path for path in TEMPLATES if "starter" in path.stem]
    assert len(nodes_of(starter)) <= 9
    assert len(TRAINING) >= 10


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_steps_widgets_and_captions(path: Path) -> None:
    titles = [group["title"] for group in json.loads(path.read_text("utf-8"))["groups"]]
    assert [title[0] for title in titles] == ["1", "2", "3", "4"]
    trainers = nodes_of(path, "KilnTrainLora")
    assert len(trainers) == (2 if "both experts" in path.stem else 1)
    for train in trainers:
        preset, steps, rate, rank, alpha, batch = train["widgets_values"][:6]
        shown = {"steps": steps, "learning_rate": rate, "rank": rank, "alpha": alpha, "batch_size": batch}
        assert shown == PRESETS[preset]
    note = note_of(path)
    if "reset *" in note:
        assert f"reset *{preset}*" in note, "the note speaks of the preset that is set"
    trigger = ""
    for captions in nodes_of(path, "KilnCaptionTemplate"):
        template, values, trigger = captions["widgets_values"][:3]
        assert (template, values) == ("{caption}", "") and trigger
    wordless = "an edit" in path.stem or "slider" in path.stem
    assert trigger or wordless, "an edit's caption is its instruction alone, a slider has none"
    (samples,) = nodes_of(path, "KilnSampleSettings") or [None]
    assert samples is None or trigger in samples["widgets_values"][0]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_loaders_say_where_their_files_are_from(path: Path) -> None:
    for node in nodes_of(path, *LOADERS):
        models = {m["name"]: m for m in node["properties"]["models"]}
        named = [v for v in node["widgets_values"] if str(v).endswith(".safetensors")]
        assert sorted(models) == sorted(named), node["type"]
        for name, model in models.items():
            assert model["url"].startswith("https://") and model["url"].endswith(f"/{name}")
            assert model["directory"] in ("checkpoints", "diffusion_models", "text_encoders", "vae")
