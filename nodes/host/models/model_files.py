"""Model files of the host, folders of pipelines, and the device they are worked on."""

from __future__ import annotations

import os
from pathlib import Path

import comfy.model_management
import folder_paths
import torch

from ....trainer.dataset.names import shown_name
from ....trainer.errors import KilnError
from ....trainer.model_files.pipeline_folder import INDEX
from ....trainer.safefile import is_safetensors

KIND = "diffusion_models"


def model_names() -> list[str]:
    """Model files that can be read; pickled ones are never opened."""
    return [n for n in folder_paths.get_filename_list(KIND) if is_safetensors(n)]


def model_path(name: str) -> Path:
    """The file behind a listed name.

    Raises:
        KilnError: there is none.
    """
    path = folder_paths.get_full_path(KIND, name)
    if path is None or not is_safetensors(name):
        raise KilnError(
            f"There is no model file {shown_name(name)} (.safetensors, .sft) in the host's {KIND} folders; put it "
            "there, or choose another."
        )
    return Path(path)


def pipeline_names() -> list[str]:
    """Folders of whole diffusers pipelines in the host's folders for them and for models, and "none" first."""
    return ["none", *_pipelines()]


def pipeline_path(name: str) -> Path | None:
    """The folder behind a listed name; None for "none".

    Raises:
        KilnError: there is none of that name.
    """
    if name == "none":
        return None
    found = _pipelines()
    if name not in found:
        raise KilnError(
            f"There is no pipeline {shown_name(name)} (a folder with {INDEX}) in the host's diffusers or {KIND} "
            "folders."
        )
    return found[name]


def _pipelines() -> dict[str, Path]:
    found: dict[str, Path] = {}
    seen: set[str] = set()  # links may lead in a circle
    for root in (r for kind in ("diffusers", KIND) for r in folder_paths.get_folder_paths(kind)):
        for folder, below, files in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if INDEX in files:
                found.setdefault(os.path.relpath(folder, root), Path(folder))
            if INDEX in files or real in seen:  # a pipeline holds no other
                below.clear()
            seen.add(real)
    return dict(sorted(found.items()))


def device() -> torch.device:
    """Where the host computes."""
    return comfy.model_management.get_torch_device()
