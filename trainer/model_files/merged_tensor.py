"""One tensor of a model file with LoRAs merged in, computed block by block and quantised again where it was fp8."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import KilnError
from ..lora_files.formulas import LayerTensors, merged_weight, scale_of
from .fp8_rounding import beyond, from_fp8, largest_by_row, largest_value, new_scale, to_fp8
from .model_keys import read_scalar
from .safetensors_file import DTYPES, FP8, Entry, SafetensorsFile
from .workers import Workers

BLOCK = 1 << 19  # bytes of a file computed at a time: a block that stays in the processor's cache is fast
FP8_TYPES = tuple(DTYPES[name] for name in FP8)


@dataclass
class TensorChanges:
    """What is merged into one tensor of the base.

    Attributes:
        adapters: tensors of one layer of a LoRA, and its strength.
        biases: difference of a bias, and its strength.
    """

    adapters: list[tuple[LayerTensors, float]] = field(default_factory=list)
    biases: list[tuple[Tensor, float]] = field(default_factory=list)


def is_plain_lora(tensors: LayerTensors) -> bool:
    """Whether a layer's adapter is B A and nothing else, so that each row can be computed by itself."""
    return set(tensors) <= {"lora_A.weight", "lora_B.weight", "alpha"}


class MergedTensor:
    """One tensor of the base with its LoRAs merged in, computed in fp32, a block of rows at a time.

    What a call returns lies in memory that the same thread's next call overwrites: asking the system for fresh memory
    for each block costs as much as the arithmetic.

    Attributes:
        row_spans: (first, last + 1) of each block of rows, to call with. All rows are one block unless the tensor is
            changed by plain LoRAs alone, because the other formulas need the whole weight.
        scale: of the fp8 base, 1 without.
    """

    _scratch = threading.local()

    def __init__(
        self,
        source: SafetensorsFile,
        entry: Entry,
        changes: TensorChanges,
        scale: str | None,
        device: torch.device | None,
    ) -> None:
        """
        Args:
            source: the base file.
            entry: the tensor in it.
            changes: what is merged into it.
            scale: the name of the tensor's scale in the file, if it has one.
            device: where to compute; the CPU without.
        """
        self._source, self._name, self._device = source, entry.name, device
        self.scale = 1.0 if scale is None else read_scalar(source, scale)
        self._adapters, self._biases = changes.adapters, changes.biases
        rows = entry.shape[0] if entry.shape else 1
        self._plain_lora = not self._biases and all(is_plain_lora(tensors) for tensors, _ in self._adapters)
        row_bytes = math.prod(entry.shape[1:]) * DTYPES[entry.dtype].itemsize
        step = max(1, BLOCK // max(1, row_bytes) if self._plain_lora else rows)
        self.row_spans = [(first, min(first + step, rows)) for first in range(0, rows, step)]
        self._checked_finite = False

    def __call__(self, span: tuple[int, int], unit: float = 1.0) -> Tensor:
        """Rows of the merged tensor, divided by `unit`.

        Args:
            span: one of row_spans, or fewer rows of a tensor that only plain LoRAs change.
            unit: the scale of the fp8 to be written.

        Returns:
            (rows, ...), fp32, valid until this thread's next call.

        Raises:
            KilnError: the base is fp8 and holds values that are no numbers.
        """
        rows = self._source.read_rows(self._name, *span, reuse=True)
        scale = self.scale / unit if self._plain_lora else self.scale
        value = self._reused(rows.shape)
        if rows.dtype in FP8_TYPES:
            if not self._checked_finite:
                self._check_finite(largest_by_row(rows))
            from_fp8(rows, value, scale)
        else:
            value.copy_(rows)
        value = value.to(self._device)
        for tensors, strength in self._adapters:
            on_device = {k: t.to(self._device) for k, t in tensors.items()}
            value = _merge_rows(value, on_device, strength / unit if self._plain_lora else strength, span[0])
        for bias, strength in self._biases:
            value += strength * bias.to(value).reshape(value.shape)
        return value if self._plain_lora or unit == 1.0 else value / unit

    def largest(self, limit: float, workers: Workers) -> float:
        """The largest |value| of an fp8 tensor after the merge, if it is above `limit`; else any number up to `limit`.

        Of plain LoRAs only rows that may exceed the limit are computed: by Cauchy and Schwarz no entry of B A is
        larger than the norm of B's row times the largest norm of A's columns.

        Raises:
            KilnError: the base holds values that are no numbers.
        """
        bound = torch.cat(list(workers.map(self._largest_in_base, self.row_spans))).mul_(self.scale)
        self._checked_finite = True
        if not self._plain_lora:
            return max(workers.map(lambda span: float(self(span).abs().max()), self.row_spans))
        for tensors, strength in self._adapters:
            a, b = tensors["lora_A.weight"].float().flatten(1), tensors["lora_B.weight"].float().flatten(1)
            bound += abs(strength * scale_of(tensors)) * float(a.norm(dim=0).max()) * b.norm(dim=1)
        above = (bound > limit * 0.999).nonzero().flatten().tolist()  # the bound is rounded itself
        few = 8 * len(above) < len(bound)  # a row computed alone takes eight times as long as within a block
        spans = [(row, row + 1) for row in above] if few else self.row_spans
        return max((0.0, *workers.map(lambda span: float(self(span).abs().max()), spans)))

    def _largest_in_base(self, span: tuple[int, int]) -> Tensor:
        return self._check_finite(largest_by_row(self._source.read_rows(self._name, *span, reuse=True)))

    def _check_finite(self, largest: Tensor) -> Tensor:
        """The argument, (rows,); raises KilnError where one is infinite (see largest_by_row)."""
        if not largest.isfinite().all():
            raise KilnError(
                f"{self._name} of {self._source.path.name} holds values that are no numbers; get the file again."
            )
        return largest

    def _reused(self, shape: torch.Size) -> Tensor:
        """fp32 memory of this thread, of that shape; its values are undefined."""
        buffer: Tensor | None = getattr(self._scratch, "value", None)
        if buffer is None or buffer.numel() < shape.numel():
            buffer = self._scratch.value = torch.empty(shape.numel(), dtype=torch.float32)
        return buffer[: shape.numel()].view(shape)


def _merge_rows(rows: Tensor, tensors: LayerTensors, strength: float, first: int) -> Tensor:
    """Rows of a weight with an adapter merged in.

    Args:
        rows: (rows, ...), fp32; overwritten by a plain LoRA. The whole weight for every other kind.
        tensors: the adapter's, of this layer.
        strength: factor on its change.
        first: the number of the first row.
    """
    if is_plain_lora(tensors):  # in place: one pass over the weight
        a, b = tensors["lora_A.weight"].float().flatten(1), tensors["lora_B.weight"].float().flatten(1)
        rows.flatten(1).addmm_(b[first : first + len(rows)], a, alpha=strength * scale_of(tensors))
        return rows
    return merged_weight(tensors, rows, strength)


def requantised(
    source: SafetensorsFile,
    name: str,
    merged: MergedTensor,
    scale: str | None,
    grown_scales: dict[str, Tensor],
    workers: Workers,
    clipped: list[int],
) -> Iterator[Tensor]:
    """The merged tensor as fp8 again, block by block of its row_spans.

    Args:
        source: the base file.
        name: of the tensor in it, which also seeds the rounding.
        merged: its values.
        scale: the name of its scale, if it has one.
        grown_scales: gets the new scale by name where values no longer fit the old one. It is known only when the
            iteration has begun, so scales are written after all other tensors.
        workers: compute the blocks.
        clipped: gets the number of values in each block that fp8 cannot hold, of a tensor that has no scale.
    """
    dtype, factor = DTYPES[source.entries[name].dtype], merged.scale
    if scale is not None:
        needed = new_scale(merged.largest(factor * largest_value(dtype), workers), factor, dtype)
        if needed != factor:
            old = source.entries[scale]
            grown_scales[scale] = torch.full(old.shape, needed).to(DTYPES[old.dtype])
            factor = float(grown_scales[scale].float().max())  # rounded to the type in which it will be read

    def rounded(span: tuple[int, int]) -> Tensor:
        value = merged(span, factor or 1.0).cpu()  # a weight of zeros may have the scale 0
        if scale is None:
            clipped.append(beyond(value, dtype))
        return to_fp8(value, dtype, name, span[0])

    return workers.map(rounded, merged.row_spans)
