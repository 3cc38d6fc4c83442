"""What a LoRA is, in words and numbers: for the shell's `info` and for anybody who wonders what a file holds."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import PEFT_FILE, LoraWeights
from .formulas import Parts, delta, family_of, layers_of, needs_base, rank_of, scale_of
from .keys import PREFIX, format_of, model_of
from .lowrank import factors
from .reading import read_lora, read_safetensors

SHOWN = ("steps", "base_model", "dataset", "merge", "extract")  # of our own metadata, beside the settings


def describe(path: Path) -> dict[str, Any]:
    """Plain values.

    Raises:
        KilnError: see adapter.reading.
    """
    lora = read_lora(path)
    raw, _ = read_safetensors(path / PEFT_FILE if path.is_dir() else path)
    layers = layers_of(lora)
    widths = {k: int(p["lora_A.weight"].shape[1]) for k, p in layers.items() if "lora_A.weight" in p}
    norms = {name: norm for name, parts in layers.items() if (norm := _norm(parts)) is not None}
    return {
        "file": path.name,
        "format": format_of(raw),
        "for": model_of(layers, widths),
        "family": _counted(family_of(parts) for parts in layers.values()),
        "layers": len(layers),
        "rank": _counted(rank_of(parts) for parts in layers.values()),
        "alpha": _counted(round(scale_of(parts) * (rank_of(parts) or 0), 4) for parts in layers.values()),
        "dtype": _counted(
            str(t.dtype).removeprefix("torch.") for k, t in raw.items() if not k.endswith(".alpha")
        ),
        "parameters": sum(t.numel() for t in raw.values()),
        "megabytes": round(sum(t.nbytes for t in raw.values()) / 1e6, 2),
        "norm": {
            "whole": round(sum(n * n for n in norms.values()) ** 0.5, 4),
            "largest": {
                k.removeprefix(PREFIX): round(norms[k], 4)
                for k in sorted(norms, key=norms.__getitem__)[:-4:-1]
            },
        },
        "training": training_of(lora),
    }


def _norm(parts: Parts) -> float | None:
    """Frobenius norm of the change; of B A without making the product: |B A|^2 = sum of (B^T B) * (A A^T)."""
    if needs_base(parts):
        return None
    pair = factors(parts)
    if pair is not None:
        b, a = (t.double() for t in pair)
        return float(((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt())
    change: Tensor | None = delta(parts)
    return None if change is None else float(change.norm())


def _counted(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def training_of(lora: LoraWeights) -> dict[str, Any]:
    """What the metadata says of the training: ours, kohya's (ss_...) or none."""
    ours = {
        name: lora.metadata[f"lora_kiln.{name}"] for name in SHOWN if f"lora_kiln.{name}" in lora.metadata
    }
    if "lora_kiln.config" in lora.metadata:
        with contextlib.suppress(ValueError):  # another program may have put anything there
            ours["settings"] = json.loads(lora.metadata["lora_kiln.config"])
    if "workflow" in lora.metadata or "prompt" in lora.metadata:
        ours["graph"] = "inside: drop the file on the canvas"
    return ours or {
        k: v for k, v in lora.metadata.items() if k.startswith(("ss_", "modelspec.")) and len(v) < 200
    }


def as_text(found: dict[str, Any]) -> str:
    """The same for a terminal."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value and all(isinstance(v, int) for v in value.values()):
            value = ", ".join(k if len(value) == 1 else f"{k} ({count})" for k, count in value.items())
        elif isinstance(value, dict):
            value = (
                "".join(f"\n  {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items())
                or "none told"
            )
        lines.append(f"{name}: {value}")
    return "\n".join(lines)
