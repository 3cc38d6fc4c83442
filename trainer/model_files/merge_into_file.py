"""Merges LoRAs into a model file, tensor by tensor: a 28 GB base needs the memory of one layer.

Every tensor keeps its order, name and type. Those that a LoRA changes are read, widened to fp32, merged and narrowed
again (merged_tensor.py); all others are copied as bytes. Scaled fp8 is dequantised for the merge and quantised again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import KilnError
from ..lora_files.formulas import LayerTensors, group_by_layer, same_shape, unknown_keys
from ..lora_files.keys import PREFIX, model_of
from ..lora_files.lora_weights import LoraWeights
from ..lora_files.metadata import figures_only, shareable, without_local_paths
from ..lora_files.read import to_our_keys
from ..lora_files.text_encoder_names import is_text_encoder
from .merged_tensor import MergedTensor, TensorChanges, is_plain_lora, requantised
from .model_keys import (
    belongs_to_packed,
    find_prefix,
    find_scale,
    is_quantisation_detail,
    layer_names,
    packed_weights,
)
from .pipeline_folder import write_pipeline
from .safetensors_file import DTYPES, FLOATS, FP8, Entry, PlannedTensor, SafetensorsFile, write_tensors
from .workers import Workers

BASE_DTYPES = {"base": None, "fp32": "F32", "bf16": "BF16", "fp16": "F16"}
LAYOUTS = ("comfyui", "diffusers")
_BIAS_DIFFERENCES = ("diff_b", "b_norm")

FP16_LIMIT = 65520.0  # from here on fp16 rounds to infinity
HARDLY = 0.05
"""Share of changed values below which a merge is said to be lost in rounding. A change of d where numbers are u apart
moves a share d / u of the values by u: the error is u / d times as strong as the change."""

Tick = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class WeightedLora:
    """One LoRA to merge, its strength, and its name in messages and in the file's metadata."""

    lora: LoraWeights
    strength: float
    name: str = "LoRA"


@dataclass
class _Changes:
    """The changes of all LoRAs together.

    Attributes:
        by_tensor: by the tensor's name in the base.
        unmatched: layers of the LoRAs that the base does not have.
        compared: values that differ from the base's, and values in all, of the first rows of each changed tensor that
            keeps its precision; filled while the file is written.
        clipped: by tensor, for each block how many values fp8 cannot hold; filled while the file is written.
    """

    by_tensor: dict[str, TensorChanges] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    compared: list[tuple[int, int]] = field(default_factory=list)
    clipped: dict[str, list[int]] = field(default_factory=dict)

    def of(self, name: str) -> TensorChanges:
        """The changes of one tensor, to add to."""
        return self.by_tensor.setdefault(name, TensorChanges())


def merge_into_file(
    base: Path,
    target: Path,
    loras: Sequence[WeightedLora],
    *,
    dtype: str = "base",
    layout: str = "comfyui",
    pipeline: Path | None = None,
    keep_metadata: bool = True,
    device: torch.device | None = None,
    tick: Tick = lambda done, total: None,
) -> str:
    """Write a copy of a model file with LoRAs merged in; an existing file is replaced.

    Args:
        base: the model's .safetensors file.
        target: the new file; for the layout diffusers the folder.
        loras: any number.
        dtype: one of BASE_DTYPES.
        layout: one of LAYOUTS.
        pipeline: for the layout diffusers, a pipeline folder from which all but the transformer is taken, see
            pipeline_folder.py.
        keep_metadata: whether what the base's file says of itself is written too; figures are in any case.
        device: where to compute; the CPU without.
        tick: told the bytes done and in all; may raise to abandon the merge.

    Returns:
        A sentence on what was merged.

    Raises:
        KilnError: a file is damaged, a LoRA matches no layer, the base is quantised in a way that is not supported, or
            the disk is full. Nothing is left behind.
    """
    for each in loras:
        if not math.isfinite(each.strength):
            raise KilnError(f"The strength of {each.name} is {each.strength}; give a number.")
    with SafetensorsFile(base) as source, Workers() as workers:
        prefix = find_prefix(source)
        changes = _match(source, prefix, loras)
        new_dtype = BASE_DTYPES[dtype]
        has_fp8 = any(entry.dtype in FP8 for entry in source.entries.values())
        if layout == "diffusers" and new_dtype is None and has_fp8:
            new_dtype = "BF16"  # diffusers does not load scaled fp8
        grown_scales: dict[str, Tensor] = {}
        packed = frozenset(packed_weights(source))
        if packed and layout == "diffusers":
            name = min(packed)
            raise KilnError(
                f"{source.path.name} is quantised ({name} is {source.entries[name].dtype}), which is not written for "
                "diffusers; use the fp16, bf16 or fp8 file of the model, or the layout comfyui."
            )
        kept = {name for name in source.entries if packed and belongs_to_packed(name, packed)}
        plan = [
            _plan_tensor(
                source,
                entry,
                changes,
                None if entry.name in kept else new_dtype,
                grown_scales,
                device,
                workers,
            )
            for entry in source.entries.values()
            if new_dtype is None or entry.name in kept or not is_quantisation_detail(entry.name)
        ]
        merged_metadata = _metadata(source, loras, keep_metadata)
        missing = ""
        if layout == "diffusers":
            missing = write_pipeline(source, prefix, target, plan, merged_metadata, tick, pipeline)
        else:
            write_tensors(target, plan, merged_metadata, tick, replacements=lambda: grown_scales)
        stays = sorted(packed) if new_dtype is not None else []
        return _summary(source, changes, stays) + missing


def _metadata(source: SafetensorsFile, loras: Sequence[WeightedLora], keep: bool) -> dict[str, str]:
    """The base's metadata, less the hash of its weights and the paths of a machine, and the names and strengths of the
    LoRAs."""
    of_base = (shareable if keep else figures_only)(LoraWeights({}, source.metadata)).metadata
    metadata = {k: v for k, v in of_base.items() if not k.startswith(("modelspec.hash", "sshs_"))}
    if keep:
        parts = [[lora.name, lora.strength] for lora in loras]
        metadata["lora_kiln.merged"] = json.dumps(without_local_paths(parts))
    return metadata


def _summary(source: SafetensorsFile, changes: _Changes, stays: Sequence[str]) -> str:
    """How many tensors were changed, which layers of the LoRAs were not used, and which weights stay packed although
    another type is asked for."""
    count = len(changes.by_tensor)
    of_text = sum(map(is_text_encoder, changes.unmatched))
    others = [layer for layer in changes.unmatched if not is_text_encoder(layer)]
    unmatched = f"; {len(others)} layers fit nothing: {', '.join(others[:3])}" if others else ""
    if of_text:
        unmatched += f"; {of_text} layers are the text encoder's, which is not merged into this file"
    lost, differ, values = "", sum(d for d, _ in changes.compared), sum(n for _, n in changes.compared)
    if values and not differ:
        lost = "; nothing is changed: the update is zero, or too small for the file's precision"
    elif differ < HARDLY * values:
        lost = (
            f"; most of the change is lost in rounding: {100 * differ / values:.1f} % of the values differ from the "
            "base's; choose a greater strength, or the dtype fp32"
        )
    packed = f"; {len(stays)} quantised weights stay as they are, such as {stays[0]}" if stays else ""
    return f"{count} of {len(source.entries)} tensors changed{unmatched}{packed}{lost}{_clipped(changes)}"


def _clipped(changes: _Changes) -> str:
    """What fp8 cannot hold and is the nearest number that it can hold now; "" for nothing."""
    found = {name: sum(counts) for name, counts in changes.clipped.items() if any(counts)}
    if not found:
        return ""
    return (
        f"; {sum(found.values())} values of {len(found)} tensors, the first {next(iter(found))}, are greater than fp8 "
        "can hold and were clipped; choose the dtype bf16, or a smaller strength"
    )


def _match(source: SafetensorsFile, prefix: str, loras: Sequence[WeightedLora]) -> _Changes:
    """The tensors of the base that each layer of each LoRA changes.

    Raises:
        KilnError: a LoRA matches no layer, is for a model of another size, or the base's weight is no float.
    """
    names, changes = layer_names(source), _Changes()
    biases: list[str] = []
    for each in loras:
        matched = 0
        lora = to_our_keys(each.lora, names, each.name)
        layers = group_by_layer(lora)
        changes.unmatched += unknown_keys(lora)
        for layer, tensors in layers.items():
            bare = prefix + layer.removeprefix(PREFIX)
            key = next((k for k in (f"{bare}.weight", bare) if k in source.entries), None)
            if key is None:
                changes.unmatched.append(layer)
                continue
            matched += 1
            _check_layer(source, key, tensors, each)
            weight = {k: t for k, t in tensors.items() if k not in _BIAS_DIFFERENCES}
            if "w_norm" in weight:
                weight["diff"] = weight.pop("w_norm")
            if "diff" in weight:
                _check_difference(source, key, weight["diff"], each)
            if set(weight) - {"alpha"}:
                changes.of(key).adapters.append((weight, each.strength))
            for part in (p for p in _BIAS_DIFFERENCES if p in tensors):
                biases.append(f"{bare}.bias")
                _check_difference(source, f"{bare}.bias", tensors[part], each)
                changes.of(f"{bare}.bias").biases.append((tensors[part], each.strength))
        if not matched:
            raise KilnError(
                f"{each.name} does not fit {source.path.name}: it is for {model_of(layers)}, and none of its "
                f"{len(layers)} layers, such as {next(iter(layers))}, is in the file. Use the model it was trained on."
            )
    missing = [name for name in biases if name not in source.entries]
    if missing:
        raise KilnError(f"The LoRA changes {missing[0]}, which {source.path.name} does not have.")
    return changes


def _check_layer(source: SafetensorsFile, key: str, tensors: LayerTensors, each: WeightedLora) -> None:
    """Raise KilnError when the base's weight is no float, or has another shape than a plain LoRA's product."""
    entry = source.entries[key]
    if entry.dtype not in FLOATS:
        raise KilnError(_quantised(source, key))
    if is_plain_lora(tensors):
        shape = (tensors["lora_B.weight"].shape[0], tensors["lora_A.weight"][0].numel())
        if shape != (math.prod(entry.shape[:1]), math.prod(entry.shape[1:])):
            raise KilnError(_other_size(source, key, shape, each))


def _check_difference(source: SafetensorsFile, name: str, difference: Tensor, each: WeightedLora) -> None:
    """Raise KilnError when a tensor that the base has is no float, or has another shape than its difference."""
    entry = source.entries.get(name)
    if entry is None:
        return
    if entry.dtype not in FLOATS:
        raise KilnError(_quantised(source, name))
    if not same_shape(difference.shape, entry.shape):
        raise KilnError(_other_size(source, name, difference.shape, each))


def _quantised(source: SafetensorsFile, name: str) -> str:
    return (
        f"{source.path.name} is quantised ({name} is {source.entries[name].dtype}), which cannot be merged into; use "
        "the fp16, bf16 or fp8 file of the model."
    )


def _other_size(source: SafetensorsFile, name: str, shape: Sequence[int], each: WeightedLora) -> str:
    found, wanted = (" x ".join(map(str, sizes)) or "1" for sizes in (shape, source.entries[name].shape))
    return (
        f"{each.name} is for another size of model: {name} is {found} in it and {wanted} in {source.path.name}. "
        "Use the model it was trained on."
    )


def _check_fp16(name: str, value: Tensor) -> None:
    """Raise KilnError where fp16 would turn a finite value into infinity."""
    smallest, largest = (float(x) for x in value.aminmax())
    most = max(abs(smallest), abs(largest))
    if FP16_LIMIT <= most < math.inf:
        raise KilnError(
            f"{name} would have values up to {most:.3g}, which fp16 cannot hold (65504 at most); choose the dtype bf16 "
            "or fp32, or a smaller strength."
        )


def _plan_tensor(
    source: SafetensorsFile,
    entry: Entry,
    changes: _Changes,
    new_dtype: str | None,
    grown_scales: dict[str, Tensor],
    device: torch.device | None,
    workers: Workers,
) -> PlannedTensor:
    """How one tensor of the base comes into the new file: copied, or computed when its turn comes."""
    dtype = new_dtype if new_dtype is not None and entry.dtype in FLOATS else entry.dtype
    new = replace(entry, dtype=dtype)
    if entry.name not in changes.by_tensor and dtype == entry.dtype:
        return PlannedTensor(new, (source, entry.name))
    scale = find_scale(source, entry.name)
    change = changes.by_tensor.get(entry.name, TensorChanges())
    merged = MergedTensor(source, entry, change, scale, device)

    def rounded(span: tuple[int, int]) -> Tensor:
        value = merged(span)
        result = value.to(DTYPES[dtype], copy=True)
        if dtype == "F16" and value.numel():
            _check_fp16(entry.name, value)
        if change.adapters and span == merged.row_spans[0] and dtype == entry.dtype:
            differ = int((source.read_rows(entry.name, *span) != result.cpu()).sum())
            changes.compared.append((differ, result.numel()))
        return result

    def make() -> Iterator[Tensor]:
        if dtype in FP8:
            clipped = changes.clipped.setdefault(entry.name, [])
            return requantised(source, entry.name, merged, scale, grown_scales, workers, clipped)
        return workers.map(rounded, merged.row_spans)

    return PlannedTensor(new, make)
