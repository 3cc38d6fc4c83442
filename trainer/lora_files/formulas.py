"""What each kind of adapter does to a weight: LoRA, DoRA, LoHa, LoKr, OFT and plain differences.

The tensors of one layer, by part (see keys.py), and the formulas, with W (out, in[, kh, kw]) flattened to (out, in):

    LoRA   W + s D             D = (alpha / r) B A; convolutions: A (r, in, kh, kw), B (out, r, 1, 1)
    DoRA   W + s (m (W + D) / |W + D| - W)       |.| per output row; lora_magnitude_vector, peft's (arXiv 2402.09353)
           W + s (m (W + D) / |W| - W)           dora_scale (out, 1), as ComfyUI applies it; (1, in): per column of W
           + D
    LoHa   D = (alpha / r) (w1_a w1_b) * (w2_a w2_b), elementwise
    LoKr   D = scale kron(w1, w2); scale is alpha / r where one of the two is factorised, else 1
    OFT    R = (1 + Q)(1 - Q)^-1 per block of output rows, Q = blocks - blocks^T (oft_blocks, LyCORIS), W + s (R^T -
    1) W;
           peft's oft_R turns the inputs instead: W + s (W R^T - W), see _peft_rotation

Without alpha, alpha / r is 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import KilnError
from .keys import split_key

Parts = dict[str, Tensor]

NEEDS_BASE = ("dora_scale", "lora_magnitude_vector", "oft_blocks", "oft_R.weight", "set_weight")


def layers_of(lora: Mapping[str, Tensor]) -> dict[str, Parts]:
    """A LoRA in our keys, by layer, then by part; keys that are none of a LoRA's are left out."""
    layers: dict[str, Parts] = {}
    for key, tensor in lora.items():
        found = split_key(key)
        if found is not None:
            layers.setdefault(found[0], {})[found[1]] = tensor
    return layers


def family_of(parts: Parts) -> str:
    """The kind of one layer's adapter."""
    if "lora_magnitude_vector" in parts or "dora_scale" in parts:
        return "DoRA"
    for start, name in (
        ("lora_", "LoRA"),
        ("hada_", "LoHa"),
        ("lokr_", "LoKr"),
        ("oft_", "OFT"),
        ("a1.", "GLoRA"),
    ):
        if any(part.startswith(start) for part in parts):
            return name
    return "difference"


def rank_of(parts: Parts) -> int | None:
    """r of one layer, or None where there is none."""
    for part, dim in (("lora_A.weight", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if part in parts:
            return int(parts[part].shape[dim])
    return None


def scale_of(parts: Parts) -> float:
    """alpha / r; 1 where there is no alpha or no r."""
    rank = rank_of(parts)
    if "alpha" not in parts or rank is None:
        return 1.0
    return float(parts["alpha"]) / rank


def shape_of(parts: Parts) -> tuple[int, int] | None:
    """(rows, columns) of D, flattened, without making it; None for adapters that are no sum.

    Raises:
        ValueError: the layer's tensors do not fit each other or some are missing; the message says which.
    """
    try:
        if "lora_A.weight" in parts:
            a, b = parts["lora_A.weight"].flatten(1), parts["lora_B.weight"].flatten(1)
            core = parts.get("lora_mid.weight")
            inner = (len(a), len(a)) if core is None else (core.shape[1], core.shape[0])
            if inner != (len(a), b.shape[1]) or not len(a):
                raise ValueError(f"lora_A has rank {len(a)} and lora_B {b.shape[1]}")
            return len(b), a.shape[1] * (1 if core is None else core[0, 0].numel())
        for start in ("hada_", "lokr_"):
            if any(name.startswith(start) for name in parts):
                first, second = (
                    _factor({k: t.to("meta") for k, t in parts.items()}, start, which).shape for which in "12"
                )
                if start == "lokr_":
                    return first[0] * second[0], first[1] * second[1:].numel()
                if first != second:
                    raise ValueError(f"its factors are {tuple(first)} and {tuple(second)}")
                return first[0], first[1:].numel()
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error
    except (RuntimeError, IndexError, AssertionError) as error:
        raise ValueError("its tensors are incomplete or do not fit each other") from error
    if "diff" in parts:
        change = parts["diff"]
        return (len(change), change[0].numel()) if change.dim() and len(change) else (1, change.numel())
    return None


def needs_base(parts: Parts) -> bool:
    """Whether the change cannot be told without the weight it is applied to."""
    return any(part in parts for part in NEEDS_BASE)


def delta(parts: Parts, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """D of the formulas above, in its own shape (flat for linear layers); None for adapters that are no sum."""
    p = {name: t.to(dtype) for name, t in parts.items()}
    if "lora_A.weight" in p and "lora_mid.weight" in p:
        a, b = p["lora_A.weight"].flatten(1), p["lora_B.weight"].flatten(1)
        return scale_of(parts) * torch.einsum("mn...,im,nj->ij...", p["lora_mid.weight"], b, a)
    if "lora_A.weight" in p:
        down = p["lora_A.weight"]
        product = (p["lora_B.weight"].flatten(1) * scale_of(parts)) @ down.flatten(1)
        return product.reshape(len(product), *down.shape[1:])
    if "hada_w1_a" in p:
        return scale_of(parts) * _factor(p, "hada_", "1") * _factor(p, "hada_", "2")
    if any(name.startswith("lokr_") for name in p):
        w1, w2 = _factor(p, "lokr_", "1"), _factor(p, "lokr_", "2")
        return scale_of(parts) * torch.kron(w1.reshape(*w1.shape, *[1] * (w2.dim() - 2)), w2)
    return p.get("diff")


def _factor(p: Parts, start: str, which: str) -> Tensor:
    """w1 or w2 of LoHa and LoKr: whole, or a product, or a product round a core (Tucker, convolutions)."""
    whole, a, b, core = (
        p.get(f"{start}{name}") for name in (f"w{which}", f"w{which}_a", f"w{which}_b", f"t{which}")
    )
    if whole is not None:
        return whole
    assert a is not None and b is not None
    return a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)


def changed(parts: Parts, weight: Tensor, strength: float) -> Tensor:
    """The weight with the adapter on.

    Args:
        parts: one layer's tensors, on the weight's device.
        weight: W, floating point; left as it is.
        strength: s.

    Raises:
        KilnError: the adapter is for a weight of another shape, or of a kind we do not know.
    """
    change = delta(parts, weight.dtype)
    if change is not None and change.numel() != weight.numel():
        raise KilnError(
            f"The LoRA is for a weight of shape {tuple(change.shape)}, the model's is {tuple(weight.shape)}; "
            "use it with the model it was trained on."
        )
    if "set_weight" in parts:
        return parts["set_weight"].to(weight)
    if "rescale" in parts or ("oft_blocks" in parts and parts["oft_blocks"].dim() > 3):
        raise KilnError(
            "BOFT and rescaled OFT can be applied to a model (Apply LoRA), and not merged into a file."
        )
    if "oft_blocks" in parts or "oft_R.weight" in parts:
        return weight + strength * (_rotated(parts, weight) - weight)
    if change is None:
        raise KilnError(
            f"Adapters of kind {family_of(parts)} ({', '.join(sorted(parts))}) are not supported here."
        )
    change = change.reshape(weight.shape)
    if "lora_magnitude_vector" in parts or "dora_scale" in parts:
        return weight + strength * (_decomposed(parts, weight, change) - weight)
    return weight + strength * change


def _decomposed(parts: Parts, weight: Tensor, change: Tensor) -> Tensor:
    """DoRA: direction of W + D, length from the magnitude."""
    whole = weight + change
    rows = (-1, *[1] * (weight.dim() - 1))
    if "lora_magnitude_vector" in parts:
        length = whole.flatten(1).norm(dim=1)
        return whole * (parts["lora_magnitude_vector"].to(weight).flatten() / length).reshape(rows)
    magnitude = parts["dora_scale"].to(weight)
    if magnitude.shape[0] == weight.shape[0]:
        length = weight.flatten(1).norm(dim=1) + torch.finfo(weight.dtype).eps
        return whole * (magnitude.flatten() / length).reshape(rows)
    length = whole.transpose(0, 1).flatten(1).norm(dim=1) + torch.finfo(weight.dtype).eps
    return whole * (magnitude.flatten() / length).reshape(1, -1, *[1] * (weight.dim() - 2))


def _rotated(parts: Parts, weight: Tensor) -> Tensor:
    if "oft_blocks" in parts:
        blocks = parts["oft_blocks"].to(weight)
        skew = blocks - blocks.transpose(1, 2)
        limit = float(parts["alpha"]) if "alpha" in parts else 0.0
        if limit > 0 and float(skew.norm()) + 1e-8 > limit:
            skew = skew * (limit / (float(skew.norm()) + 1e-8))
        one = torch.eye(skew.shape[-1]).to(weight)
        turn = (one + skew) @ torch.linalg.inv(one - skew)
        rows = weight.reshape(len(blocks), -1, weight.numel() // len(weight))
        return (turn.transpose(1, 2) @ rows).reshape(weight.shape)
    turn = _peft_rotation(parts["oft_R.weight"].to(weight))
    columns = weight.flatten(1).reshape(len(weight), len(turn), -1)
    return torch.einsum("obj,bij->obi", columns, turn).reshape(weight.shape)


def _peft_rotation(triangle: Tensor) -> Tensor:
    """peft's oft_R (blocks, b (b - 1) / 2) -> rotations (blocks, b, b), as peft makes them by default: the Neumann
    series of (1 + Q)(1 - Q)^-1 up to its fifth term, 1 + 2 Q + 2 Q^2 + 2 Q^3 + Q^4."""
    size = round((1 + (1 + 8 * triangle.shape[1]) ** 0.5) / 2)
    skew = triangle.new_zeros(len(triangle), size, size)
    row, column = torch.triu_indices(size, size, 1)
    skew[:, row, column] = triangle
    skew = skew - skew.transpose(1, 2)
    square = skew @ skew
    return torch.eye(size).to(triangle) + 2 * (skew + square) + (2 * skew + square) @ square
