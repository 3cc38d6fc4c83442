"""How a graph loads the model that is trained, and the file behind it."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

import folder_paths

from ....trainer.safefile import is_safetensors

# Nodes of the host that load a model from one file, with the name of the input that names it
LOADERS = {"UNETLoader": "unet_name", "CheckpointLoaderSimple": "ckpt_name"}


# Those of text encoders, with the place of the CLIP among their outputs
TEXT_LOADERS = {"CheckpointLoaderSimple": 1, "CLIPLoader": 0, "DualCLIPLoader": 0, "TripleCLIPLoader": 0}


def model_file(model: Any, source: dict[str, str]) -> Path | None:
    """The safetensors file that the model's weights are read from, or None where nodes in between have changed them.

    Args:
        model: the MODEL.
        source: see model_source.
    """
    folder = {"UNETLoader": "diffusion_models", "CheckpointLoaderSimple": "checkpoints"}.get(
        source.get("loader", "")
    )
    if folder is None or model.patches:
        return None
    path = folder_paths.get_full_path(folder, source["file"])
    return Path(path) if path and is_safetensors(path) else None


def model_name(source: dict[str, str]) -> str:
    """The model file's name without folders and ending, for other people; empty where the graph loads it another way.

    Args:
        source: see model_source.
    """
    return PureWindowsPath(source.get("file", "")).stem  # it takes both kinds of slashes


def model_source(prompt: dict[str, Any], node_id: str) -> dict[str, str]:
    """How the graph loads the model of a training node: the loader and its settings, or an empty loader when a node
    in between changes it (then a run file cannot make it again)."""
    link = prompt.get(node_id, {}).get("inputs", {}).get("model")
    loader = prompt.get(str(link[0]), {}) if isinstance(link, list) else {}
    kind, values = loader.get("class_type", ""), loader.get("inputs", {})
    if kind not in LOADERS or not isinstance(values.get(LOADERS[kind]), str):
        return {"loader": ""}
    rest = {k: v for k, v in values.items() if isinstance(v, str) and k != LOADERS[kind]}
    return {"loader": kind, "file": values[LOADERS[kind]], **rest}


def text_source(prompt: dict[str, Any], node_id: str) -> dict[str, str]:
    """How the graph loads the CLIP of a training node: "loader" and its settings, or an empty loader when a node in
    between changes it."""
    link = prompt.get(node_id, {}).get("inputs", {}).get("clip")
    loader = prompt.get(str(link[0]), {}) if isinstance(link, list) else {}
    kind, values = loader.get("class_type", ""), loader.get("inputs", {})
    if kind not in TEXT_LOADERS or not all(isinstance(value, str) for value in values.values()):
        return {"loader": ""}
    return {"loader": kind, **values}
