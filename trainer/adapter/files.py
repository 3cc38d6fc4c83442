"""LoRA files: key names, metadata, and writing a file whole or not at all.

The default format is "diffusion_model.<layer>.lora_A.weight" / ".lora_B.weight", with ".alpha" where alpha differs
from the rank; ComfyUI, diffusers and the other trainers' tools read it. "kohya" writes lora_unet_<layer with _> with
lora_down, lora_up and alpha.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..safefile import write_safetensors

PREFIX = "diffusion_model."
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = ("comfyui", "kohya")


class LoraWeights(dict[str, Tensor]):
    """A LoRA in the default key format, as passed from node to node: a plain dict to the host, with our metadata."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(tensors)
        self.metadata: dict[str, str] = dict(metadata or {})


def to_default_format(state: Mapping[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """LoraAdapter.state_dict() -> default keys.

    Args:
        state: "<layer>.lora_A.weight" (r, in) and "<layer>.lora_B.weight" (out, r).
        config: its alpha is written per layer unless it equals the rank.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        tensors[PREFIX + key] = tensor
        if key.endswith(".lora_A.weight") and config.alpha != config.rank:
            tensors[PREFIX + key.removesuffix(".lora_A.weight") + ".alpha"] = torch.tensor(
                float(config.alpha)
            )
    return tensors


def to_kohya_format(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Default keys -> kohya's. Keys of other shapes of adapters pass unchanged."""
    converted: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, kind = key.removeprefix(PREFIX).partition(".lora_")
        if not key.startswith(PREFIX) or kind not in ("A.weight", "B.weight"):
            if not key.endswith(".alpha"):
                converted[key] = tensor
            continue
        name = "lora_unet_" + layer.replace(".", "_")
        if kind == "A.weight":
            converted[f"{name}.lora_down.weight"] = tensor
            alpha = tensors.get(f"{PREFIX}{layer}.alpha")
            converted[f"{name}.alpha"] = torch.tensor(float(tensor.shape[0])) if alpha is None else alpha
        else:
            converted[f"{name}.lora_up.weight"] = tensor
    return converted


def origin_metadata(
    config: dict[str, Any],
    dataset: str,
    base_model: str,
    steps: int,
    graph: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """What a LoRA file says of itself. safetensors metadata is text only, so values are JSON.

    Args:
        config: TrainConfig.to_dict().
        dataset, base_model: fingerprints.
        steps: optimizer steps done.
        graph: "workflow" and "prompt" as the host hands them to a node; the host's canvas loads "workflow" from a
            dropped .safetensors file.
    """
    metadata = {
        "lora_kiln.config": json.dumps(config),
        "lora_kiln.dataset": dataset,
        "lora_kiln.base_model": base_model,
        "lora_kiln.steps": str(steps),
    }
    for name, value in (graph or {}).items():
        if value is not None:
            metadata[name] = json.dumps(value)
    return metadata


def save_lora(
    path: Path, lora: Mapping[str, Tensor], *, format: str = "comfyui", dtype: str = "fp32"
) -> None:
    """Write a LoRA to `path`, whole or not at all; an existing file is replaced.

    Args:
        lora: default keys; a LoraWeights brings its metadata along.
        format: one of FORMATS.
        dtype: one of DTYPES; alpha stays fp32.

    Raises:
        KilnError: the disk is full or the folder cannot be written.
    """
    tensors = {
        key: (t if key.endswith(".alpha") else t.to(DTYPES[dtype])).contiguous().cpu()
        for key, t in lora.items()
    }
    if format == "kohya":
        tensors = to_kohya_format(tensors)
    write_safetensors(path, tensors, getattr(lora, "metadata", {}))
