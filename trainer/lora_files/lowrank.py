"""Matrices of low rank: products, their singular values, and the best approximation of a smaller rank.

By Eckart and Young (1936) the first r terms of the singular value decomposition are the best matrix of rank r; the
share of energy that it keeps is the sum of its squared singular values over the sum of all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import KilnError
from .files import LoraWeights
from .formulas import Parts, delta, family_of, layers_of, needs_base, scale_of

EXACT_SIDE = 2048  # above it, dense matrices are factorised by the randomised method
OVERSAMPLE, POWER_STEPS = 32, 6
KEPT = ("diff_b", "w_norm", "b_norm")  # of biases and norms: without a rank, so nothing resizes them


def factors(parts: Parts) -> tuple[Tensor, Tensor] | None:
    """(out, R) and (R, in) with D = first @ second, alpha / r inside the first, fp32; None where D is no such
    product."""
    if "lora_A.weight" not in parts or "lora_mid.weight" in parts:
        return None
    a, b = parts["lora_A.weight"].float().flatten(1), parts["lora_B.weight"].float().flatten(1)
    return b * scale_of(parts), a


def product_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of b @ a, exact, without making the product.

    Args:
        b: (out, R). a: (R, in).

    Returns:
        U (out, k), S (k,) falling, V^T (k, in), in fp32.
    """
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return (left @ u).float(), s.float(), (vt @ right.T).float()


def dense_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading part of a dense (out, in) matrix's SVD: exact for small sides, randomised (Halko et al. 2011)
    above."""
    if min(matrix.shape) <= EXACT_SIDE or rank + OVERSAMPLE >= min(matrix.shape):
        u, s, vt = torch.linalg.svd(matrix.float(), full_matrices=False)
        return u, s, vt
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix.float(), q=rank + OVERSAMPLE, niter=POWER_STEPS)
    return u, s, v.T


def split(u: Tensor, s: Tensor, vt: Tensor, rank: int, kernel: tuple[int, ...] = ()) -> Parts:
    """The first `rank` terms as a LoRA layer of scale 1, the singular values shared out between A and B.

    Args:
        kernel: (in, kh, kw) of a convolution.
    """
    root = s[:rank].clamp_min(0).sqrt()
    a = (root[:, None] * vt[:rank]).contiguous()
    b = (u[:, :rank] * root).contiguous()
    if kernel:
        a, b = a.reshape(len(a), *kernel), b.reshape(*b.shape, *[1] * (len(kernel) - 1))
    return {"lora_A.weight": a, "lora_B.weight": b}


def smallest_rank(s: Tensor, energy: float) -> int:
    """The least number of terms that keeps this share of the energy, at least 1."""
    kept = s.double().square().cumsum(0)
    return min(len(s), 1 + int((kept < energy * kept[-1]).sum()))


def kernel_of(parts: Parts) -> tuple[int, ...]:
    """(in, kh, kw) of a convolution's layer, () of a linear one."""
    down = parts.get("lora_A.weight")
    return tuple(down.shape[1:]) if down is not None and down.dim() > 2 else ()


def resize(
    lora: Mapping[str, Tensor], rank: int, energy: float | None = None, device: torch.device | None = None
) -> tuple[LoraWeights, str]:
    """A LoRA of another rank.

    Args:
        lora: our keys. LoHa and LoKr become LoRA.
        rank: the new rank; with `energy`, the most a layer may have. A layer of a smaller rank keeps its own.
        energy: share 0-1 of each layer's energy to keep, by as small a rank as does it.
        device: where to work.

    Returns:
        The LoRA and a sentence on ranks and kept energy.

    Raises:
        KilnError: a layer is no sum that can be factorised (DoRA, OFT), or rank or energy is out of range.
    """
    check_size(rank, energy)
    resized = LoraWeights({}, getattr(lora, "metadata", {}))
    ranks, kept, total = [], 0.0, 0.0
    for layer, parts in layers_of(lora).items():
        plain = {
            p: t for p, t in parts.items() if p in KEPT or (p == "diff" and (t.dim() < 2 or len(t) == 1))
        }
        resized.update({f"{layer}.{part}": tensor for part, tensor in plain.items()})
        if not parts.keys() - plain.keys() - {"alpha"}:
            continue
        u, s, vt, kernel = svd_of(layer, parts, rank, device)
        chosen = min(rank, len(s), int((s > s[0] * 1e-7).sum()) or 1)
        if energy is not None:
            chosen = min(chosen, smallest_rank(s, energy))
        squares = s.double().square()
        ranks.append(chosen)
        kept, total = kept + float(squares[:chosen].sum()), total + float(squares.sum())
        for part, tensor in split(u, s, vt, chosen, kernel).items():
            resized[f"{layer}.{part}"] = tensor.cpu()
    if not ranks:
        raise KilnError(
            "The LoRA holds only differences of biases and norms, which have no rank; use it as it is."
        )
    span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)}-{max(ranks)}"
    return resized, f"rank {span}, {100 * kept / max(total, 1e-30):.2f} % of the energy kept"


def check_size(rank: int, energy: float | None) -> None:
    """Raise a KilnError unless rank is 1 or more and energy, if it is given, lies above 0 and is at most 1."""
    if rank < 1:
        raise KilnError(f"rank is {rank}; it must be 1 or more.")
    if energy is not None and not 0 < energy <= 1:
        raise KilnError(f"energy is {energy}; it must lie above 0 and be at most 1.")


def svd_of(
    layer: str, parts: Parts, rank: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """U, S, V^T and the kernel of one layer's D.

    Raises:
        KilnError: the layer is no sum.
    """
    if needs_base(parts):
        raise KilnError(
            f"{layer} is {family_of(parts)}, which depends on the model's own weight; merge it into the model instead."
        )
    pair = factors(parts)
    if pair is not None:
        return *product_svd(pair[0].to(device), pair[1].to(device)), kernel_of(parts)
    dense = delta(parts)
    if dense is None:
        raise KilnError(f"{layer} holds nothing that has a rank ({', '.join(sorted(parts))}).")
    kernel = tuple(dense.shape[1:]) if dense.dim() > 2 else ()
    return *dense_svd(dense.flatten(1).to(device), rank), kernel
