"""LoRAs into a model file, tensor by tensor: a 28 GB base needs the memory of one layer.

Every tensor keeps its place, name and type. Those that a LoRA changes are read, widened to fp32, changed and narrowed
again; all others are copied as bytes. Scaled fp8 is dequantised for the change and quantised again (quantised.py).
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import KilnError
from ..lora_files.formulas import LayerTensors, group_by_layer, merged_weight, scale_of
from ..lora_files.keys import PREFIX, lookup, model_of
from ..lora_files.lora_weights import LoraWeights
from ..lora_files.read import to_our_keys
from .fp8_rounding import from_fp8, largest_by_row, largest_value, new_scale, to_fp8
from .pipeline_folder import write_pipeline
from .safetensors_file import DTYPES, FLOATS, FP8, Entry, PlannedTensor, SafetensorsFile, write_tensors
from .workers import Workers

BASE_DTYPES = {"base": None, "fp32": "F32", "bf16": "BF16", "fp16": "F16"}
LAYOUTS = ("comfyui", "diffusers")
BASE_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
SCALES = (".scale_weight", ".weight_scale")  # ComfyUI 0.3 and 0.33
QUANTISED_ONLY = (
    *SCALES,
    ".scale_input",
    ".input_scale",
    ".comfy_quant",
)  # beside a weight; no use in other types
MARKER = "scaled_fp8"
PLAIN = {"lora_A.weight", "lora_B.weight", "alpha"}
BLOCK = (
    1 << 19
)  # bytes of a file worked on at a time: they stay in the processor's cache, which makes it fast
PARTS_OF_BIAS = ("diff_b", "b_norm")
FP8_TYPES = tuple(DTYPES[name] for name in FP8)

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class WeightedLora:
    """One LoRA to merge."""

    lora: LoraWeights
    strength: float
    name: str = "LoRA"


@dataclass
class _Changes:
    """What to do to each tensor of the base, by its name there."""

    weights: dict[str, list[tuple[LayerTensors, float]]] = field(default_factory=dict)
    biases: dict[str, list[tuple[Tensor, float]]] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)


def merge_into_file(
    base: Path,
    target: Path,
    loras: Sequence[WeightedLora],
    *,
    dtype: str = "base",
    layout: str = "comfyui",
    pipeline: Path | None = None,
    metadata: dict[str, str] | None = None,
    device: torch.device | None = None,
    tick: Tick = lambda done, total: None,
) -> str:
    """Write a copy of a model file with LoRAs in it; an existing file is replaced.

    Args:
        base: the model's .safetensors file.
        target: the new file; for the layout diffusers the folder.
        loras: any number.
        dtype: one of BASE_DTYPES.
        layout: one of LAYOUTS.
        pipeline: for the layout diffusers, a pipeline folder that gives what is no transformer, see pipeline_folder.py.
        metadata: to add to the base's own.
        device: where to compute; the CPU without.
        tick: told bytes done and in all; may raise to abandon.

    Returns:
        A sentence on what was merged.

    Raises:
        KilnError: a file is damaged, a LoRA fits nothing, the base is quantised in a way that is not known, or the disk
            is full. Nothing is left behind.
    """
    for each in loras:
        if not math.isfinite(each.strength):
            raise KilnError(f"The strength of {each.name} is {each.strength}; give a number.")
    with SafetensorsFile(base) as source, Workers() as workers:
        prefix = _prefix(source)
        changes = _changes(source, prefix, loras)
        wanted = BASE_DTYPES[dtype]
        if layout == "diffusers" and wanted is None and any(e.dtype in FP8 for e in source.entries.values()):
            wanted = "BF16"  # diffusers does not load scaled fp8
        scales: dict[str, Tensor] = {}
        plan = [
            _planned(source, entry, changes, wanted, scales, device, workers)
            for entry in source.entries.values()
            if wanted is None or not _only_quantised(entry.name)
        ]
        notes = {k: v for k, v in source.metadata.items() if not k.startswith("modelspec.hash")}
        notes |= {"lora_kiln.merged": json.dumps([[s.name, s.strength] for s in loras]), **(metadata or {})}
        missing = ""
        if layout == "diffusers":
            missing = write_pipeline(source, prefix, target, plan, notes, tick, pipeline)
        else:
            write_tensors(target, plan, notes, tick, late=lambda: scales)
    merged = len(changes.weights)
    left = (
        f"; {len(changes.unmatched)} layers fit nothing: {', '.join(changes.unmatched[:3])}"
        if changes.unmatched
        else ""
    )
    return f"{merged} of {len(source.entries)} tensors changed{left}{missing}"


def _prefix(source: SafetensorsFile) -> str:
    return next(p for p in BASE_PREFIXES if p == "" or any(k.startswith(p) for k in source.entries))


def _only_quantised(name: str) -> bool:
    return name.endswith(QUANTISED_ONLY) or name.split(".")[-1] == MARKER


def layer_names(source: SafetensorsFile) -> dict[str, str]:
    """Every spelling of the file's layers -> their own name there without prefix, see keys.lookup."""
    prefix = _prefix(source)
    bare = [name[len(prefix) :] for name in source.entries if name.startswith(prefix)]
    return lookup(
        [n.removesuffix(".weight") for n in bare if not n.endswith(".bias") and not _only_quantised(n)]
    )


def _changes(source: SafetensorsFile, prefix: str, loras: Sequence[WeightedLora]) -> _Changes:
    names, changes = layer_names(source), _Changes()
    for each in loras:
        fitted = 0
        layers = group_by_layer(to_our_keys(each.lora, names, each.name))
        for layer, parts in layers.items():
            bare = prefix + layer.removeprefix(PREFIX)
            key = next((k for k in (f"{bare}.weight", bare) if k in source.entries), None)
            if key is None:
                changes.unmatched.append(layer)
                continue
            fitted += 1
            _check(source, key, parts, each)
            _register(changes, key, bare, parts, each.strength)
        if not fitted:
            raise KilnError(
                f"{each.name} does not fit {source.path.name}: it is for {model_of(layers)}, and none of its "
                f"{len(layers)} layers, such as {next(iter(layers))}, is in the file. Use the model it was trained on."
            )
    missing = [k for k in changes.biases if k not in source.entries]
    if missing:
        raise KilnError(f"The LoRA changes {missing[0]}, which {source.path.name} does not have.")
    return changes


def _register(changes: _Changes, key: str, bare: str, parts: LayerTensors, strength: float) -> None:
    weight = {k: t for k, t in parts.items() if k not in PARTS_OF_BIAS}
    if "w_norm" in weight:
        weight["diff"] = weight.pop("w_norm")
    if set(weight) - {"alpha"}:
        changes.weights.setdefault(key, []).append((weight, strength))
    for part in PARTS_OF_BIAS:
        if part in parts:
            changes.biases.setdefault(f"{bare}.bias", []).append((parts[part], strength))


def _check(source: SafetensorsFile, key: str, parts: LayerTensors, each: WeightedLora) -> None:
    entry = source.entries[key]
    if entry.dtype not in FLOATS:
        raise KilnError(
            f"{source.path.name} is quantised ({key} is {entry.dtype}), which cannot be merged into; use the "
            f"fp16, bf16 or "
            "fp8 file of the model."
        )
    if set(parts) <= PLAIN:
        shape = (parts["lora_B.weight"].shape[0], parts["lora_A.weight"][0].numel())
        if shape != (entry.shape[0], math.prod(entry.shape[1:])):
            raise KilnError(
                f"{each.name} is for another size of model: {key} is {shape[0]} x {shape[1]} in it and "
                f"{' x '.join(map(str, entry.shape))} in {source.path.name}. Use the model it was trained on."
            )


def _planned(
    source: SafetensorsFile,
    entry: Entry,
    changes: _Changes,
    wanted: str | None,
    scales: dict[str, Tensor],
    device: torch.device | None,
    workers: Workers,
) -> PlannedTensor:
    """How one tensor of the base comes into the new file."""
    dtype = wanted if wanted is not None and entry.dtype in FLOATS else entry.dtype
    new = Entry(entry.name, dtype, entry.shape)
    scale = _scale_name(source, entry.name)
    touched = entry.name in changes.weights or entry.name in changes.biases
    if not touched and (dtype == entry.dtype):
        return PlannedTensor(new, (source, entry.name))

    change = _Change(source, entry, changes, scale, device)

    def make() -> Iterator[Tensor]:
        if dtype in FP8:
            return _requantised(source, entry.name, change, scale, scales, workers)
        return workers.map(lambda span: change(span).to(DTYPES[dtype], copy=True), change.spans)

    return PlannedTensor(new, make)


class _Change:
    """One tensor of the base with its LoRAs on, in fp32, block of rows by block of rows.

    What a call returns lies in memory that the same thread's next call uses again: asking the system for fresh memory
    for each block costs as much as the arithmetic.
    """

    _scratch = threading.local()

    def __init__(
        self,
        source: SafetensorsFile,
        entry: Entry,
        changes: _Changes,
        scale: str | None,
        device: torch.device | None,
    ) -> None:
        self._source, self._name, self._device = source, entry.name, device
        self.scale = 1.0 if scale is None else _scalar(source, scale)
        self._adapters = changes.weights.get(entry.name, [])
        self._biases = changes.biases.get(entry.name, [])
        rows = entry.shape[0] if entry.shape else 1
        self.plain = not self._biases and all(set(parts) <= PLAIN for parts, _ in self._adapters)
        width = math.prod(entry.shape[1:]) * DTYPES[entry.dtype].itemsize
        step = max(1, BLOCK // max(1, width) if self.plain else rows)
        self.spans = [(first, min(first + step, rows)) for first in range(0, rows, step)]
        self._known_finite = False

    def __call__(self, span: tuple[int, int], unit: float = 1.0) -> Tensor:
        """Rows of the changed weight, in multiples of `unit`.

        Raises:
            KilnError: the base is fp8 and holds values that are no numbers.
        """
        rows = self._source.read_rows(self._name, *span, reuse=True)
        scale = self.scale / unit if self.plain else self.scale
        value = self._reused(rows.shape)
        if rows.dtype in FP8_TYPES:
            if not self._known_finite:
                self._finite(largest_by_row(rows))
            from_fp8(rows, value, scale)
        else:
            value.copy_(rows)
        value = value.to(self._device)
        for parts, strength in self._adapters:
            on = {k: t.to(self._device) for k, t in parts.items()}
            value = _apply(value, on, strength / unit if self.plain else strength, span[0])
        for bias, strength in self._biases:
            value += strength * bias.to(value)
        return value if self.plain or unit == 1.0 else value / unit

    def largest(self, limit: float, workers: Workers) -> float:
        """The largest |value|, if that is above `limit`; else something up to `limit`. For fp8.

        Of a plain LoRA only those rows are computed that may hold such a value: by Cauchy and Schwarz no entry of
        B A is larger than the length of B's row times that of A's longest column.

        Raises:
            KilnError: the base holds values that are no numbers.
        """
        bound = torch.cat(list(workers.map(self._largest_in_base, self.spans))).mul_(self.scale)
        self._known_finite = True
        if not self.plain:
            return max(workers.map(lambda span: float(self(span).abs().max()), self.spans))
        for parts, strength in self._adapters:
            a, b = parts["lora_A.weight"].float().flatten(1), parts["lora_B.weight"].float().flatten(1)
            bound += abs(strength * scale_of(parts)) * float(a.norm(dim=0).max()) * b.norm(dim=1)
        above = (bound > limit * 0.999).nonzero().flatten().tolist()  # the bound is rounded itself
        few = 8 * len(above) < len(bound)  # a row by itself takes eight times as long as one of a block
        spans = [(row, row + 1) for row in above] if few else self.spans
        return max((0.0, *workers.map(lambda span: float(self(span).abs().max()), spans)))

    def _largest_in_base(self, span: tuple[int, int]) -> Tensor:
        return self._finite(largest_by_row(self._source.read_rows(self._name, *span, reuse=True)))

    def _finite(self, largest: Tensor) -> Tensor:
        if not largest.isfinite().all():
            raise KilnError(
                f"{self._name} of {self._source.path.name} holds values that are no numbers; get the file again."
            )
        return largest

    def _reused(self, shape: torch.Size) -> Tensor:
        held: Tensor | None = getattr(self._scratch, "value", None)
        if held is None or held.numel() < shape.numel():
            held = self._scratch.value = torch.empty(shape.numel(), dtype=torch.float32)
        return held[: shape.numel()].view(shape)


def _scalar(source: SafetensorsFile, name: str) -> float:
    return float(source.read(name).float().max())


def _scale_name(source: SafetensorsFile, name: str) -> str | None:
    if not name.endswith(".weight") or source.entries[name].dtype not in FP8:
        return None
    found = (name.removesuffix(".weight") + ending for ending in SCALES)
    return next((scale for scale in found if scale in source.entries), None)


def _apply(rows: Tensor, parts: LayerTensors, strength: float, first: int) -> Tensor:
    """Some rows of a weight with an adapter on, from row `first`; all of them unless it is a plain LoRA."""
    if set(parts) <= PLAIN:  # in place: one pass over the weight
        a, b = parts["lora_A.weight"].float().flatten(1), parts["lora_B.weight"].float().flatten(1)
        rows.flatten(1).addmm_(b[first : first + len(rows)], a, alpha=strength * scale_of(parts))
        return rows
    return merged_weight(parts, rows, strength)


def _requantised(
    source: SafetensorsFile,
    name: str,
    change: _Change,
    scale: str | None,
    scales: dict[str, Tensor],
    workers: Workers,
) -> Iterator[Tensor]:
    """fp8 again; a scale that had to grow is put into `scales`, which are written last."""
    dtype, factor = DTYPES[source.entries[name].dtype], change.scale
    if scale is not None:
        needed = new_scale(change.largest(factor * largest_value(dtype), workers), factor, dtype)
        if needed != factor:
            old = source.entries[scale]
            scales[scale] = torch.full(old.shape, needed).to(DTYPES[old.dtype])
            factor = float(scales[scale].float().max())  # as it will be read
    return workers.map(lambda span: to_fp8(change(span, factor).cpu(), dtype, name, span[0]), change.spans)
