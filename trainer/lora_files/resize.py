"""Changes the rank of a LoRA: each layer becomes its best approximation of the new rank (see svd.py)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import KilnError
from .double import to_double
from .formulas import group_by_layer, unknown_keys
from .lora_weights import LoraWeights
from .svd import check_rank_and_energy, factors_from_svd, layer_svd, rank_for_energy

_DIFFERENCES_WITHOUT_RANK = ("diff_b", "w_norm", "b_norm")  # of biases and norms


def resize(
    lora: Mapping[str, Tensor], rank: int, energy: float | None = None, device: torch.device | None = None
) -> tuple[LoraWeights, str]:
    """The best approximation of a LoRA at another rank.

    Args:
        lora: our keys. LoHa and LoKr become LoRA.
        rank: the new rank, 1 or more; with `energy`, the largest that a layer may get. A layer of a smaller rank keeps
            its own.
        energy: share (0-1) of each layer's energy to keep, by the smallest rank that does.
        device: where to compute; where the tensors are without.

    Returns:
        The LoRA and a sentence on ranks and kept energy.

    Raises:
        KilnError: a layer cannot be factorised (DoRA, OFT), or rank or energy is out of range.
    """
    check_rank_and_energy(rank, energy)
    resized = LoraWeights({}, getattr(lora, "metadata", {}))
    resized.update({key: lora[key] for key in unknown_keys(lora)})
    ranks, kept_energy, total_energy = [], 0.0, 0.0
    for layer, tensors in group_by_layer(lora).items():
        unchanged = {name: t for name, t in tensors.items() if _has_no_rank(name, t)}
        resized.update({f"{layer}.{name}": tensor for name, tensor in unchanged.items()})
        if not tensors.keys() - unchanged.keys() - {"alpha"}:
            continue
        u, s, vt, kernel = layer_svd(layer, tensors, rank, device)
        chosen = min(rank, len(s), int((s > s[0] * 1e-7).sum()) or 1)  # no terms that are rounding noise
        if energy is not None:
            chosen = min(chosen, rank_for_energy(s, energy))
        squares = to_double(s).square()
        ranks.append(chosen)
        kept_energy += float(squares[:chosen].sum())
        total_energy += float(squares.sum())
        for name, tensor in factors_from_svd(u, s, vt, chosen, kernel).items():
            resized[f"{layer}.{name}"] = tensor.cpu()
    if not ranks:
        raise KilnError(
            "The LoRA holds only differences of biases and norms, which have no rank; use it as it is."
        )
    span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)}-{max(ranks)}"
    return resized, f"rank {span}, {100 * kept_energy / max(total_energy, 1e-30):.2f} % of the energy kept"


def _has_no_rank(name: str, tensor: Tensor) -> bool:
    """Whether a layer's tensor is the difference of a vector (bias, norm), which no resizing changes."""
    return name in _DIFFERENCES_WITHOUT_RANK or (name == "diff" and (tensor.dim() < 2 or len(tensor) == 1))
