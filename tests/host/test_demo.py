"""The main job: the demo's workflow trains the concept and draws it."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from safetensors import safe_open

from scripts.demo import COLUMNS, run_workflow
from scripts.host_client import HostClient


def test_the_concept_is_learned(client: HostClient, tmp_path: Path) -> None:
    summary = run_workflow(client, tmp_path / "demo")
    scores = [summary["concept_score"][title] for title in COLUMNS]
    assert summary["samples_per_score"] == 20
    assert scores[0] <= 0.1 and scores[-1] >= 0.8, scores
    assert scores == sorted(scores) and scores[-1] > scores[1], scores
    assert summary["last_loss"] < summary["first_loss"]
    assert json.loads((tmp_path / "demo" / "summary.json").read_text("utf-8")) == summary
    assert Image.open(tmp_path / "demo" / "grid.png").size == (4 * 172 + 12, 4 * 172 + 46)
    with safe_open(tmp_path / "demo" / "lora.safetensors", "pt") as opened:
        workflow = json.loads(opened.metadata()["workflow"])
    assert any(node["type"] == "KilnTrainLora" for node in workflow["nodes"])
