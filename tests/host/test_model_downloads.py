"""The addresses of model files in our templates are those of ComfyUI's own templates, as its packages hold them."""

from __future__ import annotations

import json
from collections import defaultdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from scripts import model_downloads
from scripts.model_downloads import ModelFile

FILES = {name: f for name, f in vars(model_downloads).items() if isinstance(f, ModelFile)}


def official() -> dict[str, set[tuple[str, str]]]:
    """File name -> (folder, address) in the templates that ComfyUI itself ships."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)

    def read(nodes: list[dict[str, Any]]) -> None:
        for node in nodes:
            for model in (node.get("properties") or {}).get("models") or []:
                found[model["name"]].add((model["directory"], model["url"].partition("?")[0]))

    for package in distributions():
        if not (package.name or "").lower().replace("_", "-").startswith("comfyui-workflow-templates"):
            continue
        for file in package.files or []:
            if file.suffix == ".json" and "templates" in file.parts:
                workflow = json.loads(Path(str(file.locate())).read_text("utf-8"))
                if isinstance(workflow, dict) and "nodes" in workflow:
                    read(workflow["nodes"])
                    for subgraph in (workflow.get("definitions") or {}).get("subgraphs", []):
                        read(subgraph["nodes"])
    return found


def test_addresses_are_those_of_the_hosts_own_templates() -> None:
    known = official()
    checked = [file for file in FILES.values() if file.name in known]
    assert (
        len(checked) >= len(FILES) - 2
    )  # Z-Image's base model and Qwen3-VL came later than the pinned templates
    for file in checked:
        assert (file.directory, file.url) in known[file.name], file
