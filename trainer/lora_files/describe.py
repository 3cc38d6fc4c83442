"""Describes a LoRA file: format, kind, ranks, norms and how it was trained. The shell's `info` prints it."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..parsers import parse_json
from .double import to_double
from .formulas import (
    LayerTensors,
    changes_nothing,
    delta_weight,
    group_by_layer,
    kind_of,
    needs_base_weight,
    rank_of,
    scale_of,
)
from .keys import PREFIX, format_of, model_of
from .lora_weights import LoraWeights
from .read import read_lora, read_safetensors
from .save import PEFT_FILE
from .svd import low_rank_factors
from .text_encoder_names import is_text_encoder

_SHOWN_METADATA = ("steps", "base_model", "dataset", "merge", "extract")  # of ours, beside the settings


def describe(path: Path) -> dict[str, Any]:
    """Numbers, texts and dicts of them, as JSON can hold.

    Args:
        path: a .safetensors file, or the folder of a peft adapter.

    Raises:
        KilnError: see read.read_lora.
    """
    lora = read_lora(path)
    raw, _ = read_safetensors(path / PEFT_FILE if path.is_dir() else path)
    layers = group_by_layer(lora)
    widths = {k: int(t["lora_A.weight"].shape[1]) for k, t in layers.items() if "lora_A.weight" in t}
    norms = {name: norm for name, tensors in layers.items() if (norm := _norm(tensors)) is not None}
    return {
        "file": path.name,
        "format": format_of(raw),
        "for": model_of(layers, widths),
        "family": _counts(kind_of(tensors) for tensors in layers.values()),
        "layers": len(layers),
        "text encoder layers": sum(map(is_text_encoder, layers)) or "",
        "rank": _counts(rank_of(tensors) or "none" for tensors in layers.values()),
        "alpha": _counts(
            round(scale_of(tensors) * rank, 4) if (rank := rank_of(tensors)) else "none"
            for tensors in layers.values()
        ),
        "dtype": _counts(
            str(t.dtype).removeprefix("torch.") for k, t in raw.items() if not k.endswith(".alpha")
        ),
        "parameters": sum(t.numel() for t in raw.values()),
        "megabytes": round(sum(t.nbytes for t in raw.values()) / 1e6, 2),
        "effect": "none: the update of every layer is zero" if changes_nothing(layers) else "",
        "norm": {
            "whole": round(sum(n * n for n in norms.values()) ** 0.5, 4),
            "largest": {
                k.removeprefix(PREFIX): round(norms[k], 4)
                for k in sorted(norms, key=norms.__getitem__)[:-4:-1]
            },
        },
        "training": training_metadata(lora),
    }


def _norm(tensors: LayerTensors) -> float | None:
    """Frobenius norm of D (see formulas.py); None where it depends on the frozen weight.

    Of B A without computing the product: |B A|^2 = sum of (B^T B) * (A A^T).
    """
    if needs_base_weight(tensors):
        return None
    factors = low_rank_factors(tensors)
    if factors is not None:
        b, a = (to_double(t) for t in factors)
        return float(((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt())
    delta: Tensor | None = delta_weight(tensors)
    return None if delta is None else float(delta.norm())


def _counts(values: Iterable[Any]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return {str(value): count for value, count in Counter(values).most_common()}


def training_metadata(lora: LoraWeights) -> dict[str, Any]:
    """What the metadata tells of the training: our own fields, else kohya's (ss_..., modelspec...), else nothing."""
    ours = {
        name: lora.metadata[f"lora_kiln.{name}"]
        for name in _SHOWN_METADATA
        if f"lora_kiln.{name}" in lora.metadata
    }
    if "lora_kiln.config" in lora.metadata:
        with contextlib.suppress(ValueError):  # another program may have put anything there
            ours["settings"] = parse_json(lora.metadata["lora_kiln.config"])
    if "workflow" in lora.metadata or "prompt" in lora.metadata:
        ours["graph"] = "inside: drop the file on the canvas"
    return ours or {
        k: v for k, v in lora.metadata.items() if k.startswith(("ss_", "modelspec.")) and len(v) < 200
    }


def as_text(description: dict[str, Any]) -> str:
    """A description from `describe` as lines for a terminal."""
    lines = []
    for name, value in description.items():
        if value == "":
            continue
        if isinstance(value, dict) and value and all(isinstance(v, int) for v in value.values()):
            value = ", ".join(k if len(value) == 1 else f"{k} ({count})" for k, count in value.items())
        elif isinstance(value, dict):
            value = (
                "".join(f"\n  {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items())
                or "none told"
            )
        lines.append(f"{name}: {value}")
    return "\n".join(lines)
