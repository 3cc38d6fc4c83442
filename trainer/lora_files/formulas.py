"""The formula by which each kind of adapter changes a weight: LoRA, DoRA, LoHa, LoKr, OFT and plain differences.

W (out, in) is the frozen weight; a convolution's (out, in, kh, kw) is flattened to (out, in kh kw). s is the strength.
Names are those of the tensors of one layer (see keys.py).

    LoRA        W + s D                   D = (alpha / r) B A; convolutions: A (r, in, kh, kw), B (out, r, 1, 1)
    DoRA        W + s (m (W + D) / |W + D| - W)       m = lora_magnitude_vector (out,), peft's; |.| per output row
                                                      (Liu et al. 2024, arXiv 2402.09353)
                W + s (m (W + D) / |W| - W)           m = dora_scale (out, 1), as ComfyUI applies it; where it is
                                                      (1, in), |.| per column of W + D
    LoHa        W + s D                   D = (alpha / r) (w1_a w1_b) * (w2_a w2_b), elementwise
    LoKr        W + s D                   D = scale kron(w1, w2); scale: alpha / r where w1 or w2 is factorised, else 1
    OFT         W + s (R^T - 1) W         R = (1 + Q)(1 - Q)^-1 per block of output rows, Q = blocks - blocks^T
                                          (oft_blocks, as LyCORIS writes them)
                W + s (W R^T - W)         oft_R, peft's, rotates the inputs, see `_peft_rotation`
    difference  W + s D                   D = diff

Without alpha, alpha / r is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import KilnError
from .keys import split_key

_ADDED = ("diff", "diff_b", "w_norm", "b_norm", "lora_B.bias")  # added as they are, to the weight or its bias
_NO_FACTORS = ("alpha", "dora_scale", "lora_magnitude_vector", "rescale", "scalar", "reshape_weight")

LayerTensors = dict[str, Tensor]  # the tensors of one layer, by name: "lora_A.weight", "alpha", ...

_NEEDS_BASE_WEIGHT = ("dora_scale", "lora_magnitude_vector", "oft_blocks", "oft_R.weight", "set_weight")


def group_by_layer(lora: Mapping[str, Tensor]) -> dict[str, LayerTensors]:
    """The tensors of a LoRA in our keys, by layer, then by name; keys that are none of a LoRA's are left out."""
    layers: dict[str, LayerTensors] = {}
    for key, tensor in lora.items():
        layer_and_name = split_key(key)
        if layer_and_name is not None:
            layer, name = layer_and_name
            layers.setdefault(layer, {})[name] = tensor
    return layers


def unknown_keys(lora: Mapping[str, Tensor]) -> list[str]:
    """The keys that group_by_layer leaves out: embeddings that were bundled with a LoRA, and the like."""
    return [key for key in lora if split_key(key) is None]


def listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def kind_of(tensors: LayerTensors) -> str:
    """The kind of one layer's adapter: LoRA, DoRA, LoHa, LoKr, OFT, GLoRA or difference."""
    if "lora_magnitude_vector" in tensors or "dora_scale" in tensors:
        return "DoRA"
    for prefix, kind in (
        ("lora_", "LoRA"),
        ("hada_", "LoHa"),
        ("lokr_", "LoKr"),
        ("oft_", "OFT"),
        ("a1.", "GLoRA"),
    ):
        if any(name.startswith(prefix) for name in tensors):
            return kind
    return "difference"


def rank_of(tensors: LayerTensors) -> int | None:
    """r of one layer, or None where nothing is factorised."""
    for name in ("lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):  # each (r, ...)
        if name in tensors:
            return int(tensors[name].shape[0])
    return None


def same_shape(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether they are the same but for dimensions of 1, so that a reshape puts each value where it belongs."""
    return [n for n in first if n != 1] == [n for n in second if n != 1]


def is_zero(tensors: LayerTensors) -> bool:
    """Whether one layer's update is exactly zero: one of the matrices that are multiplied is, or a rotation is by
    nothing. The start values of one are; a matrix that got a gradient is never exactly zero again. Of DoRA, the
    magnitudes are not looked at."""
    if "set_weight" in tensors or any(bool(tensors[name].any()) for name in _ADDED if name in tensors):
        return False
    factors = [t for name, t in tensors.items() if name not in (*_ADDED, *_NO_FACTORS)]
    if not factors or scale_of(tensors) == 0 or not all(bool(t.any()) for t in factors):
        return True
    return "lora_B.weight" in tensors and _cancels(tensors)


def changes_nothing(layers: Mapping[str, LayerTensors]) -> bool:
    """Whether the update of every layer is exactly zero, so that a model with the LoRA on is the model without it."""
    magnitudes = ("dora_scale", "lora_magnitude_vector")
    return all(is_zero(t) and not any(name in t for name in magnitudes) for t in layers.values())


def _cancels(tensors: LayerTensors) -> bool:
    """Whether the difference to PiSSA's start values is zero: [B, -B] [A; A]."""
    a, b = widened(tensors["lora_A.weight"]), widened(tensors["lora_B.weight"])
    rank = len(a) // 2
    return len(a) % 2 == 0 and torch.equal(a[:rank], a[rank:]) and torch.equal(b[:, :rank], -b[:, rank:])


def widened(tensor: Tensor) -> Tensor:
    """The same values, in fp32 where they are fp8: torch neither multiplies, adds nor compares those."""
    return tensor.float() if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else tensor


def scale_of(tensors: LayerTensors) -> float:
    """alpha / r; 1 where there is no alpha or no r."""
    rank = rank_of(tensors)
    if "alpha" not in tensors or rank is None:
        return 1.0
    return float(tensors["alpha"]) / rank


def shape_of(tensors: LayerTensors) -> tuple[int, int] | None:
    """(out, in) of D, flattened, without computing it; None for kinds without a D, such as OFT.

    Raises:
        ValueError: tensors are missing or their shapes do not match; the message says which.
    """
    try:
        if "lora_A.weight" in tensors:
            a, b = tensors["lora_A.weight"].flatten(1), tensors["lora_B.weight"].flatten(1)
            core = tensors.get("lora_mid.weight")
            ranks = (len(a), len(a)) if core is None else (core.shape[1], core.shape[0])
            if ranks != (len(a), b.shape[1]) or not len(a):
                raise ValueError(f"lora_A has rank {len(a)} and lora_B {b.shape[1]}")
            return len(b), a.shape[1] * (1 if core is None else core[0, 0].numel())
        for prefix in ("hada_", "lokr_"):
            if any(name.startswith(prefix) for name in tensors):
                on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
                first, second = (_factor(on_meta, prefix, number).shape for number in "12")
                if prefix == "lokr_":
                    return first[0] * second[0], first[1] * second[1:].numel()
                if first != second:
                    raise ValueError(f"its factors are {tuple(first)} and {tuple(second)}")
                return first[0], first[1:].numel()
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error
    except (RuntimeError, IndexError, AssertionError) as error:
        raise ValueError("its tensors are incomplete or do not fit each other") from error
    if "diff" in tensors:
        diff = tensors["diff"]
        return (len(diff), diff[0].numel()) if diff.dim() and len(diff) else (1, diff.numel())
    return None


def needs_base_weight(tensors: LayerTensors) -> bool:
    """Whether the change depends on the weight it is applied to (DoRA, OFT)."""
    return any(name in tensors for name in _NEEDS_BASE_WEIGHT)


def delta_weight(tensors: LayerTensors, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """D of the formulas above: (out, in), or (out, in, kh, kw) for a convolution; None for kinds without a D.

    Args:
        tensors: one layer's.
        dtype: to compute in.
    """
    p = {name: t.to(dtype) for name, t in tensors.items()}
    if "lora_A.weight" in p and "lora_mid.weight" in p:
        a, b = p["lora_A.weight"].flatten(1), p["lora_B.weight"].flatten(1)
        return scale_of(tensors) * torch.einsum("mn...,im,nj->ij...", p["lora_mid.weight"], b, a)
    if "lora_A.weight" in p:
        down = p["lora_A.weight"]
        product = (p["lora_B.weight"].flatten(1) * scale_of(tensors)) @ down.flatten(1)
        return product.reshape(len(product), *down.shape[1:])
    if "hada_w1_a" in p:
        return scale_of(tensors) * _factor(p, "hada_", "1") * _factor(p, "hada_", "2")
    if any(name.startswith("lokr_") for name in p):
        w1, w2 = _factor(p, "lokr_", "1"), _factor(p, "lokr_", "2")
        return scale_of(tensors) * torch.kron(w1.reshape(*w1.shape, *[1] * (w2.dim() - 2)), w2)
    return p.get("diff")


def _factor(tensors: LayerTensors, prefix: str, number: str) -> Tensor:
    """w1 or w2 of LoHa and LoKr: stored whole, or as a b, or as a Tucker product with a core t (convolutions).

    Args:
        tensors: one layer's.
        prefix: "hada_" or "lokr_".
        number: "1" or "2".
    """
    whole, a, b, core = (
        tensors.get(prefix + name) for name in (f"w{number}", f"w{number}_a", f"w{number}_b", f"t{number}")
    )
    if whole is not None:
        return whole
    assert a is not None and b is not None
    return a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)


def merged_weight(tensors: LayerTensors, weight: Tensor, strength: float) -> Tensor:
    """The weight with the adapter merged in, by the formulas above.

    Args:
        tensors: one layer's, on the weight's device.
        weight: W, floating point, (out, in) or (out, in, kh, kw); not modified.
        strength: s, any finite number.

    Raises:
        KilnError: the adapter is for a weight of another shape, or of a kind that is not supported.
    """
    delta = delta_weight(tensors, weight.dtype)
    if delta is not None and not (
        same_shape(delta.shape, weight.shape)
        if "diff" in tensors
        else delta.numel() == weight.numel() and weight.dim() > 1 and len(delta) == len(weight)
    ):  # of a product, which has a row for each output, a convolution's inputs may be flat
        raise _other_shape(delta, weight)
    if "set_weight" in tensors:
        whole = tensors["set_weight"]
        if not same_shape(whole.shape, weight.shape):
            raise _other_shape(whole, weight)
        return whole.to(weight).reshape(weight.shape)
    if "rescale" in tensors or ("oft_blocks" in tensors and tensors["oft_blocks"].dim() > 3):
        raise KilnError(
            "BOFT and rescaled OFT can be applied to a model (Apply LoRA), and not merged into a file."
        )
    if "oft_blocks" in tensors or "oft_R.weight" in tensors:
        return weight + strength * (_oft_weight(tensors, weight) - weight)
    if delta is None:
        raise KilnError(
            f"Adapters of kind {kind_of(tensors)} ({', '.join(sorted(tensors))}) are not supported here."
        )
    delta = delta.reshape(weight.shape)
    if "lora_magnitude_vector" in tensors or "dora_scale" in tensors:
        return weight + strength * (_dora_weight(tensors, weight, delta) - weight)
    return weight + strength * delta


def _other_shape(found: Tensor, weight: Tensor) -> KilnError:
    return KilnError(
        f"The LoRA is for a weight of shape {tuple(found.shape)}, the model's is {tuple(weight.shape)}; "
        "use it with the model it was trained on."
    )


def _dora_weight(tensors: LayerTensors, weight: Tensor, delta: Tensor) -> Tensor:
    """DoRA at strength 1: the direction of W + D, scaled by the magnitude over a norm (see the formulas above)."""
    updated = weight + delta
    rows = (-1, *[1] * (weight.dim() - 1))
    if "lora_magnitude_vector" in tensors:
        norm = updated.flatten(1).norm(dim=1)
        return updated * (tensors["lora_magnitude_vector"].to(weight).flatten() / norm).reshape(rows)
    magnitude = tensors["dora_scale"].to(weight)
    if magnitude.shape[0] == weight.shape[0]:
        norm = weight.flatten(1).norm(dim=1) + torch.finfo(weight.dtype).eps
        return updated * (magnitude.flatten() / norm).reshape(rows)
    _check_size(magnitude.numel(), weight.shape[1], "inputs")
    norm = updated.transpose(0, 1).flatten(1).norm(dim=1) + torch.finfo(weight.dtype).eps
    return updated * (magnitude.flatten() / norm).reshape(1, -1, *[1] * (weight.dim() - 2))


def _oft_weight(tensors: LayerTensors, weight: Tensor) -> Tensor:
    """OFT at strength 1: blocks of output rows (oft_blocks) or of inputs (oft_R) rotated.

    alpha, where it is given, is LyCORIS's constraint: the largest norm that Q may have (0: none).
    """
    if "oft_blocks" in tensors:
        blocks = tensors["oft_blocks"].to(weight)  # (number of blocks, b, b)
        skew = blocks - blocks.transpose(1, 2)
        limit = float(tensors["alpha"]) if "alpha" in tensors else 0.0
        if limit > 0 and float(skew.norm()) + 1e-8 > limit:
            skew = skew * (limit / (float(skew.norm()) + 1e-8))
        identity = torch.eye(skew.shape[-1]).to(weight)
        rotation = (identity + skew) @ torch.linalg.inv(identity - skew)
        _check_size(len(blocks) * skew.shape[-1], len(weight), "rows")
        rows = weight.reshape(len(blocks), -1, weight.numel() // len(weight))
        return (rotation.transpose(1, 2) @ rows).reshape(weight.shape)
    rotation = _peft_rotation(tensors["oft_R.weight"].to(weight))
    _check_size(len(rotation) * rotation.shape[-1], weight[0].numel(), "inputs")
    columns = weight.flatten(1).reshape(len(weight), len(rotation), -1)
    return torch.einsum("obj,bij->obi", columns, rotation).reshape(weight.shape)


def _check_size(found: int, wanted: int, of: str) -> None:
    if found != wanted:
        raise KilnError(
            f"The LoRA is for a weight of {found} {of}, the model's has {wanted}; use it with the model it was trained "
            "on."
        )


def _peft_rotation(triangle: Tensor) -> Tensor:
    """Rotations (blocks, b, b) of peft's oft_R, as peft computes them by default (use_cayley_neumann).

    The Neumann series of (1 + Q)(1 - Q)^-1 up to its fifth term, 1 + 2 Q + 2 Q^2 + 2 Q^3 + Q^4.

    Args:
        triangle: (blocks, b (b - 1) / 2), the entries of Q above the diagonal.
    """
    size = round((1 + (1 + 8 * triangle.shape[1]) ** 0.5) / 2)
    skew = triangle.new_zeros(len(triangle), size, size)
    row, column = torch.triu_indices(size, size, 1)
    skew[:, row, column] = triangle
    skew = skew - skew.transpose(1, 2)
    square = skew @ skew
    return torch.eye(size).to(triangle) + 2 * (skew + square) + (2 * skew + square) @ square
