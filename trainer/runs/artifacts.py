"""A run's files on disk: counted, deleted, and the graph that its LoRA carries.

A run's folder holds files of ours with known names. A person may have put others beside them, such as a copy of the
LoRA under a name of its own: those are never deleted.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..errors import KilnError
from ..parsers import parse_json
from .run import LORA

# Names that the engine itself gives: checkpoints, samples, the LoRA and what describes the run
_OWN_NAMES = re.compile(
    r"step-\d+|samples|run\.toml|dataset\.json|manifest\.json|result\.json|lora\.safetensors|\..*\.tmp.*|\.tmp\w{6}"
)


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """What deleting a run would remove, and what it would keep."""

    bytes: int = 0
    checkpoints: int = 0
    samples: int = 0
    lora: bool = False
    foreign_files: list[str] = field(default_factory=list)  # names of what a person has put there
    paths: list[Path] = field(default_factory=list)  # of ours, which would be deleted


def find_artifacts(folder: Path) -> Artifacts:
    """What is in a run's folder; nothing when the folder is gone."""
    entries = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    ours = [p for p in entries if _OWN_NAMES.fullmatch(p.name) and not p.is_symlink()]
    files = [f for p in ours for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
    return Artifacts(
        bytes=sum(f.lstat().st_size for f in files),
        checkpoints=sum(p.name.startswith("step-") for p in ours),
        samples=sum(f.parent.name == "samples" and f.suffix == ".png" for f in files),
        lora=(folder / LORA) in ours,
        foreign_files=[p.name for p in entries if p not in ours],
        paths=ours,
    )


def delete_artifacts(folder: Path) -> Artifacts:
    """Delete what is ours in a run's folder, and the folder itself when nothing else is in it.

    Raises:
        KilnError: a file cannot be deleted; what could be is gone.
    """
    artifacts = find_artifacts(folder)
    try:
        for path in artifacts.paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if folder.is_dir() and not artifacts.foreign_files:
            folder.rmdir()
    except OSError as error:
        raise KilnError(
            f"The run {folder.name} cannot be deleted ({error}); close what uses its files, or give ComfyUI's user "
            "permission to write there."
        ) from error
    return artifacts


def has_graph(folder: Path) -> bool:
    """Whether `read_graph` may find one; cheap, for lists."""
    return (folder / LORA).is_file()


def read_graph(folder: Path) -> dict[str, Any]:
    """The graph that a run's LoRA carries: "workflow" as the canvas saves it, "prompt" as the server ran it; either
    may be missing.

    Raises:
        KilnError: the run has left no LoRA, or its file is damaged.
    """
    if not has_graph(folder):
        raise KilnError(f"The run {folder.name} has left no LoRA, which would carry its graph.")
    try:
        with safe_open(folder / LORA, "pt") as opened:
            metadata = opened.metadata() or {}
        return {name: parse_json(metadata[name]) for name in ("workflow", "prompt") if name in metadata}
    except Exception as error:  # safetensors has its own error type
        raise KilnError(f"The LoRA of the run {folder.name} cannot be read ({error}).") from error
