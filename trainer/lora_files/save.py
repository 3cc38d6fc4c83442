"""Writes a LoRA as a file of any format, or as a peft folder, whole or not at all. read.py is the inverse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import KilnError
from ..safefile import is_safetensors, write_safetensors
from ..temporary import replacing_folder
from .convert import convert_keys, diffusers_metadata, peft_config_fields
from .formulas import group_by_layer, kind_of
from .metadata import of_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PEFT_CONFIG, PEFT_FILE = "adapter_config.json", "adapter_model.safetensors"
_PEFT_TYPES = {"LoRA": "LORA", "DoRA": "LORA", "LoHa": "LOHA", "LoKr": "LOKR", "OFT": "OFT"}


def save_lora(
    path: Path, lora: Mapping[str, Tensor], *, format: str = "comfyui", dtype: str = "fp32", title: str = ""
) -> Path:
    """Write a LoRA to `path`, whole or not at all; an existing file is replaced.

    Args:
        path: the file, ending in .safetensors. peft keeps an adapter in a folder, which gets this name without its
            ending.
        lora: our keys; the metadata of a LoraWeights is written too.
        format: one of keys.FORMATS.
        title: shown by managers of LoRAs, where the metadata has none; the file's name without.
        dtype: one of DTYPES, or "keep" for each tensor's own; alpha stays fp32.

    Returns:
        The file or folder written.

    Raises:
        KilnError: the disk is full, the folder cannot be written, or the format cannot hold this kind of
            adapter.
    """
    tensors = {
        key: (t if key.endswith(".alpha") or dtype == "keep" else _cast(key, t, dtype)).contiguous().cpu()
        for key, t in lora.items()
    }
    stem = path.stem if is_safetensors(path.name) else path.name
    metadata = of_file(getattr(lora, "metadata", {}), tensors, stem, format, title)
    converted = convert_keys(tensors, format)
    if format == "peft":
        return _write_peft(path.with_suffix(""), converted, metadata, _peft_config(tensors))
    if format == "diffusers":
        metadata["lora_adapter_metadata"] = json.dumps(diffusers_metadata(tensors), sort_keys=True)
    write_safetensors(path, {k: t.clone() for k, t in converted.items()}, metadata)
    return path


def _cast(key: str, tensor: Tensor, dtype: str) -> Tensor:
    """Raise KilnError where fp16 turns a tensor into infinities, or all of it into zeros."""
    cast = tensor.to(DTYPES[dtype])
    if dtype == "fp16" and tensor.is_floating_point():
        largest = float(tensor.float().abs().max()) if tensor.numel() else 0.0
        if (not cast.isfinite().all() and largest < float("inf")) or (largest and not cast.any()):
            range_ = "between 6e-8 and 65504"
            raise KilnError(
                f"{key} has values up to {largest:.2g}, which fp16 cannot hold ({range_}); save it as bf16 or fp32."
            )
    return cast


def _peft_config(lora: Mapping[str, Tensor]) -> dict[str, Any]:
    """What peft's save_pretrained writes into adapter_config.json."""
    kind = next((kind_of(tensors) for tensors in group_by_layer(lora).values()), "LoRA")
    return {"peft_type": _PEFT_TYPES[kind], "inference_mode": True, **peft_config_fields(lora, "peft")}


def _write_peft(
    folder: Path, converted: dict[str, Tensor], metadata: dict[str, str], config: dict[str, Any]
) -> Path:
    """Write the folder that peft's save_pretrained would, built under a temporary name and then renamed.

    Raises:
        KilnError: the folder exists and holds other files, or cannot be written.
    """
    try:
        if folder.is_dir() and {p.name for p in folder.iterdir()} - {PEFT_CONFIG, PEFT_FILE, "README.md"}:
            raise KilnError(
                f"{folder} holds other files than a peft adapter's, which would be lost; choose another name."
            )
        with replacing_folder(folder) as temporary:
            write_safetensors(temporary / PEFT_FILE, {k: t.clone() for k, t in converted.items()}, metadata)
            (temporary / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    except OSError as error:
        raise KilnError(f"Cannot write {folder} ({error}); check free space and write permission.") from error
    return folder
