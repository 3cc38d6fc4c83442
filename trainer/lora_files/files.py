"""LoRA files: metadata, and writing a file of any format whole or not at all. Reading is in reading.py, names in
keys.py.

Our keys are "diffusion_model.<layer>.lora_A.weight" / ".lora_B.weight", with ".alpha" where alpha differs from the
rank;
ComfyUI, diffusers and the other trainers' tools read them. diffusers and peft keep alpha beside the tensors instead:
in the file's metadata, and in adapter_config.json.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import KilnError
from ..safefile import write_safetensors
from .formulas import Parts, family_of, layers_of, rank_of
from .keys import FORMATS, PREFIX, spell_key, spell_layer

__all__ = [
    "DTYPES",
    "FORMATS",
    "PREFIX",
    "LoraWeights",
    "origin_metadata",
    "save_lora",
    "spelled",
    "to_default_format",
]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PEFT_CONFIG, PEFT_FILE = "adapter_config.json", "adapter_model.safetensors"


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


def spelled(lora: Mapping[str, Tensor], format: str) -> dict[str, Tensor]:
    """Our keys -> those of one of FORMATS.

    kohya's always hold alpha; diffusers' and peft's never do (see `adapter_fields`).

    Raises:
        KilnError: the format cannot hold this family of adapters.
    """
    written: dict[str, Tensor] = {}
    for layer, parts in layers_of(lora).items():
        _check_family(layer, parts, format)
        rank = rank_of(parts)
        if format == "kohya" and rank is not None:
            parts.setdefault("alpha", torch.tensor(float(rank)))
        for part, tensor in parts.items():
            if part == "alpha" and format in ("diffusers", "peft"):
                continue
            part, tensor = _magnitude(
                part, tensor, format, kernel=parts.get("lora_A.weight", tensor).dim() - 2
            )
            written[spell_key(layer, part, format)] = tensor
    return written


def _check_family(layer: str, parts: Parts, format: str) -> None:
    family = family_of(parts)
    if format == "diffusers" and family not in ("LoRA", "DoRA"):
        others = "comfyui or kohya" if family in ("difference", "GLoRA") else "comfyui or peft"
        raise KilnError(f"diffusers loads LoRA and DoRA only, and {layer} is {family}; save it as {others}.")
    if format == "peft" and (
        family in ("difference", "GLoRA") or "oft_blocks" in parts or "lora_mid.weight" in parts
    ):
        raise KilnError(
            f"peft has no adapter such as {layer} ({', '.join(sorted(parts))}); save it as comfyui or kohya."
        )
    if format in ("comfyui", "kohya") and "oft_R.weight" in parts:
        raise KilnError(f"{layer} is an OFT of peft's kind, which only peft reads; save it as peft.")


def _magnitude(part: str, tensor: Tensor, format: str, kernel: int) -> tuple[str, Tensor]:
    """DoRA's magnitude: (out, 1[, 1, 1]) in ComfyUI's and kohya's files, (out,) or (1, out, 1, 1) in diffusers' and
    peft's; `kernel` is the number of dimensions of a convolution's kernel."""
    if part == "lora_magnitude_vector" and format in ("comfyui", "kohya"):
        return "dora_scale", tensor.reshape(-1, 1, *[1] * kernel)
    if part == "dora_scale" and format in ("diffusers", "peft"):
        if tensor.shape[0] == 1:
            raise KilnError(
                f"This DoRA scales columns, and {format} only knows rows; save it as comfyui or kohya."
            )
        return "lora_magnitude_vector", tensor.reshape(
            1, -1, *[1] * kernel
        ) if kernel > 0 else tensor.flatten()
    return part, tensor


def adapter_fields(lora: Mapping[str, Tensor], format: str) -> dict[str, Any]:
    """The fields of a peft config for a LoRA: kind, rank and alpha, with patterns for the layers that differ."""
    prefix = "transformer." if format == "diffusers" else "base_model.model."
    layers = layers_of(lora)
    families = {family_of(parts) for parts in layers.values()}
    if len(families) > 1 and not families <= {"LoRA", "DoRA"}:
        raise KilnError(
            f"A {format} adapter is of one kind, and this LoRA mixes {', '.join(sorted(families))}."
        )
    names = {layer: spell_layer(layer, format).removeprefix(prefix) for layer in layers}
    ranks = {names[k]: rank_of(p) or _rank_of_whole(p) for k, p in layers.items()}
    alphas = {
        names[k]: float(p["alpha"]) if "alpha" in p else float(ranks[names[k]]) for k, p in layers.items()
    }
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    kind = next(iter(families)) if families else "LoRA"
    fields: dict[str, Any] = {
        "r": rank,
        "target_modules": sorted(names.values()),
        "rank_pattern": {k: v for k, v in ranks.items() if v != rank},
        "alpha_pattern": {k: v for k, v in alphas.items() if v != alpha},
    }
    if kind in ("LoRA", "DoRA"):
        return {
            **fields,
            "lora_alpha": alpha,
            "use_dora": "DoRA" in families,
            "lora_dropout": 0.0,
            "bias": "none",
        }
    if kind == "OFT":
        return {"r": 0, "oft_block_size": _oft_block(layers), "target_modules": fields["target_modules"]}
    return {**fields, "alpha": alpha, **_lokr_fields(layers)}


def _rank_of_whole(parts: Parts) -> int:
    """A rank at which peft does not factorise a LoKr layer that has whole factors."""
    return max(parts["lokr_w2"].shape[:2]) if "lokr_w2" in parts else 8


def _oft_block(layers: Mapping[str, Parts]) -> int:
    sizes = {round((1 + (1 + 8 * p["oft_R.weight"].shape[1]) ** 0.5) / 2) for p in layers.values()}
    if len(sizes) != 1:
        raise KilnError("This OFT has blocks of several sizes, which a peft adapter cannot hold.")
    return sizes.pop()


def _lokr_fields(layers: Mapping[str, Parts]) -> dict[str, Any]:
    factored = any("lokr_w1_a" in parts for parts in layers.values())
    factors = {parts["lokr_w1"].shape[0] for parts in layers.values() if "lokr_w1" in parts}
    if not any(part.startswith("lokr_") for parts in layers.values() for part in parts):
        return {}
    return {
        "decompose_both": factored,
        "decompose_factor": max(factors, default=-1) if len(factors) == 1 else -1,
    }


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
) -> Path:
    """Write a LoRA to `path`, whole or not at all; an existing file is replaced.

    Args:
        path: the file; for peft, which keeps an adapter in a folder, the folder is called as the file without its
        ending. lora: our keys; a LoraWeights brings its metadata along.
        format: one of FORMATS.
        dtype: one of DTYPES, or "keep"; alpha stays fp32.

    Returns:
        The file or folder written.

    Raises:
        KilnError: the disk is full, the folder cannot be written, or the format cannot hold this family.
    """
    tensors = {
        key: (t if key.endswith(".alpha") or dtype == "keep" else t.to(DTYPES[dtype])).contiguous().cpu()
        for key, t in lora.items()
    }
    metadata = dict(getattr(lora, "metadata", {}))
    written = spelled(tensors, format)
    if format == "peft":
        return _write_peft(path.with_suffix(""), tensors, written, metadata)
    if format == "diffusers":
        fields = adapter_fields(tensors, format)
        metadata["lora_adapter_metadata"] = json.dumps(
            {f"transformer.{k}": v for k, v in fields.items()}, sort_keys=True
        )
    write_safetensors(path, {k: t.clone() for k, t in written.items()}, metadata)
    return path


def _write_peft(
    folder: Path, tensors: Mapping[str, Tensor], written: dict[str, Tensor], metadata: dict[str, str]
) -> Path:
    """An adapter as peft's save_pretrained leaves it, built under a temporary name."""
    kinds = {"LoRA": "LORA", "DoRA": "LORA", "LoHa": "LOHA", "LoKr": "LOKR", "OFT": "OFT"}
    kind = next((family_of(parts) for parts in layers_of(tensors).values()), "LoRA")
    config = {"peft_type": kinds[kind], "inference_mode": True, **adapter_fields(tensors, "peft")}
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.tmp")
    try:
        if folder.is_dir() and {p.name for p in folder.iterdir()} - {PEFT_CONFIG, PEFT_FILE, "README.md"}:
            raise KilnError(
                f"{folder} holds other files than a peft adapter's, which would be lost; choose another name."
            )
        temporary.mkdir(parents=True)
        write_safetensors(temporary / PEFT_FILE, {k: t.clone() for k, t in written.items()}, metadata)
        (temporary / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        if folder.is_dir():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        raise KilnError(f"Cannot write {folder} ({error}); check free space and write permission.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
