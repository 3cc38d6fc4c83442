"""Layers that are several in other tools: the q, k and v of an attention whose network computes all three at once.

    dW = [B_q A_q; B_k A_k; B_v A_v]        rows one below the other

Where the three share A it is B = [B_q; B_k; B_v], otherwise A = [A_q; A_k; A_v] and B has B_q, B_k, B_v on its
diagonal, which is exact too, at three times the rank. DoRA's magnitudes, one for each row, are put together likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..errors import KilnError
from .formulas import LayerTensors, kind_of, scale_of, widened

_MAGNITUDES = ("dora_scale", "lora_magnitude_vector")


def join(parts: Mapping[int, LayerTensors], widths: Sequence[int]) -> LayerTensors | None:
    """One layer of its parts, or None where they cannot be put together.

    Args:
        parts: by their place from above; one that is missing is no change.
        widths: outputs by inputs of each part.
    """
    count = len(widths)
    parts = {i: {name: widened(t) for name, t in tensors.items()} for i, tensors in parts.items()}
    if any(set(t) - {"lora_A.weight", "lora_B.weight", "alpha", *_MAGNITUDES} for t in parts.values()):
        return None
    kinds = {kind_of(t) for t in parts.values()}
    if kinds - {"LoRA", "DoRA"} or any("lora_A.weight" not in t for t in parts.values()):
        return None
    width = next(iter(parts.values()))["lora_A.weight"].shape[1]
    if len(parts) < count and kinds != {"LoRA"}:
        return None  # the magnitudes of the others are not known
    rows = [len(parts[i]["lora_B.weight"]) if i in parts else widths[i] * width for i in range(count)]
    downs = [parts[i]["lora_A.weight"] for i in sorted(parts)]
    shared = len({scale_of(t) for t in parts.values()}) == 1 and all(torch.equal(d, downs[0]) for d in downs)
    joined: LayerTensors = {}
    if shared:
        first = parts[min(parts)]
        joined |= {name: first[name] for name in ("lora_A.weight", "alpha") if name in first}
        rank = len(downs[0])
        ups = [
            parts[i]["lora_B.weight"] if i in parts else downs[0].new_zeros(rows[i], rank)
            for i in range(count)
        ]
        joined["lora_B.weight"] = torch.cat(ups)
    else:
        joined["lora_A.weight"] = torch.cat(downs)
        joined["lora_B.weight"] = downs[0].new_zeros(sum(rows), sum(map(len, downs)))
        column = 0
        for i in sorted(parts):
            block = parts[i]["lora_B.weight"] * scale_of(parts[i])
            row = sum(rows[:i])
            joined["lora_B.weight"][row : row + len(block), column : column + block.shape[1]] = block
            column += block.shape[1]
    for name in _MAGNITUDES:
        if all(name in t for t in parts.values()):
            joined[name] = torch.cat([parts[i][name] for i in sorted(parts)])
    return joined


def split_rows(layer: str, tensors: LayerTensors, count: int) -> list[LayerTensors]:
    """The parts of a layer, as many rows each as it has inputs, the last the rest. Columns that a part does not use
    are left out of it.

    Raises:
        KilnError: it is of a kind that has no parts.
    """
    if set(tensors) - {"lora_A.weight", "lora_B.weight", "alpha", *_MAGNITUDES}:
        raise KilnError(
            f"{layer} is {count} layers in diffusers, and its {kind_of(tensors)} cannot be split; save it as comfyui."
        )
    down, up = tensors["lora_A.weight"], tensors["lora_B.weight"]
    width, scale = down.shape[1], scale_of(tensors)
    sizes = [width] * (count - 1) + [len(up) - width * (count - 1)]
    if min(sizes) < 1:
        raise KilnError(
            f"{layer} cannot be split into {count} layers: it has {len(up)} rows and {width} inputs."
        )
    parts = []
    starts = [sum(sizes[:i]) for i in range(count)]
    for start, size in zip(starts, sizes, strict=True):
        rows = up[start : start + size]
        used = rows.flatten(1).any(0)
        if not bool(used.any()):
            used[0] = True  # no change: one column stays, as readers want both matrices
        part = {"lora_A.weight": down[used].contiguous(), "lora_B.weight": rows[:, used].contiguous()}
        if scale != 1 or "alpha" in tensors:
            part["alpha"] = torch.tensor(float(scale * int(used.sum())))
        for name in _MAGNITUDES:
            if name in tensors:
                part[name] = (
                    tensors[name]
                    .reshape(len(up), -1)[start : start + size]
                    .reshape(size, *tensors[name].shape[1:])
                )
        parts.append(part)
    return parts
