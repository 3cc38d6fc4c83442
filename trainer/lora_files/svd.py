"""Singular value decompositions of LoRA layers, and the best approximation of a smaller rank.

By Eckart and Young (1936) the first r terms of the singular value decomposition are the best matrix of rank r. The
energy of a matrix is the sum of its squared singular values; the share that r terms keep is theirs over the sum of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KilnError
from .double import to_double
from .formulas import LayerTensors, delta_weight, kind_of, needs_base_weight, scale_of

EXACT_SIDE = 2048  # dense matrices whose smaller side is larger are factorised by the randomised method
OVERSAMPLE, POWER_STEPS = (
    32,
    6,
)  # of the randomised method: extra columns, and passes that sharpen the spectrum


def low_rank_factors(tensors: LayerTensors) -> tuple[Tensor, Tensor] | None:
    """B (out, r), times alpha / r, and A (r, in), both fp32, so that D = B A; None where D is no such product.

    Args:
        tensors: one layer's. A convolution's kernel is flattened into `in`.
    """
    if "lora_A.weight" not in tensors or "lora_mid.weight" in tensors:
        return None
    a, b = tensors["lora_A.weight"].float().flatten(1), tensors["lora_B.weight"].float().flatten(1)
    return b * scale_of(tensors), a


def product_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The exact SVD of b @ a, by QR of both factors, without computing the product.

    Args:
        b: (out, r).
        a: (r, in).

    Returns:
        U (out, k), S (k,) in falling order, V^T (k, in), k = min(out, in, r); fp32, computed in double.
    """
    left, upper = torch.linalg.qr(to_double(b))
    right, lower = torch.linalg.qr(to_double(a).T)
    u, s, vt = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    u, s, vt = ((left @ u).float(), s.float(), (vt @ right.T).float())
    return u.to(b.device), s.to(b.device), vt.to(b.device)


def dense_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading terms of a dense matrix's SVD: exact up to EXACT_SIDE, else randomised (Halko et al. 2011).

    Args:
        matrix: (out, in).
        rank: the number of terms that must be good; more may be returned.

    Returns:
        U (out, k), S (k,) in falling order, V^T (k, in), k at least min(rank, out, in); fp32. The same input gives
        the same result: the randomised method has a fixed seed.
    """
    if min(matrix.shape) <= EXACT_SIDE or rank + OVERSAMPLE >= min(matrix.shape):
        u, s, vt = torch.linalg.svd(matrix.float(), full_matrices=False)
        return u, s, vt
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix.float(), q=rank + OVERSAMPLE, niter=POWER_STEPS)
    return u, s, v.T


def factors_from_svd(
    u: Tensor, s: Tensor, vt: Tensor, rank: int, kernel: tuple[int, ...] = ()
) -> LayerTensors:
    """The first `rank` terms of an SVD as a LoRA layer of scale 1: A = sqrt(S) V^T, B = U sqrt(S).

    Args:
        u: (out, k).
        s: (k,) in falling order.
        vt: (k, in).
        rank: at most k.
        kernel: (in, kh, kw) of a convolution, () for a linear layer.
    """
    root = s[:rank].clamp_min(0).sqrt()
    a = (root[:, None] * vt[:rank]).contiguous()
    b = (u[:, :rank] * root).contiguous()
    if kernel:
        a, b = a.reshape(len(a), *kernel), b.reshape(*b.shape, *[1] * (len(kernel) - 1))
    return {"lora_A.weight": a, "lora_B.weight": b}


def rank_for_energy(s: Tensor, energy: float) -> int:
    """The smallest number of terms, at least 1, that keeps this share (0-1) of the energy of singular values s (k,)."""
    cumulative = to_double(s).square().cumsum(0)
    return min(len(s), 1 + int((cumulative < energy * cumulative[-1]).sum()))


def kernel_shape(tensors: LayerTensors) -> tuple[int, ...]:
    """(in, kh, kw) of a LoRA on a convolution, () of one on a linear layer."""
    a = tensors.get("lora_A.weight")
    return tuple(a.shape[1:]) if a is not None and a.dim() > 2 else ()


def check_rank_and_energy(rank: int, energy: float | None) -> None:
    """Raise KilnError unless rank is 1 or more and energy, if it is given, lies above 0 and is at most 1."""
    if rank < 1:
        raise KilnError(f"rank is {rank}; it must be 1 or more.")
    if energy is not None and not 0 < energy <= 1:
        raise KilnError(f"energy is {energy}; it must lie above 0 and be at most 1.")


def check_finite(layer: str, *tensors: Tensor) -> None:
    """Raise KilnError where a layer's computed values are beyond what fp32 holds."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise KilnError(
            f"{layer} would have values that fp32 cannot hold: its factors, its alpha or the weights are too large; "
            "take smaller weights, or leave the LoRA out."
        )


def layer_svd(
    layer: str, tensors: LayerTensors, rank: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """The SVD of one layer's D.

    Args:
        layer: its name, for messages.
        tensors: its tensors.
        rank: see `dense_svd`.
        device: where to compute; where the tensors are without.

    Returns:
        U, S, V^T and (in, kh, kw) of a convolution, () of a linear layer.

    Raises:
        KilnError: the layer has no D (DoRA, OFT), or one that fp32 cannot hold.
    """
    if needs_base_weight(tensors):
        raise KilnError(
            f"{layer} is {kind_of(tensors)}, which depends on the model's own weight; merge it into the model instead."
        )
    factors = low_rank_factors(tensors)
    if factors is not None:
        b, a = factors
        check_finite(layer, b, a)
        u, s, vt = product_svd(b.to(device), a.to(device))
        check_finite(layer, u, s, vt)
        return u, s, vt, kernel_shape(tensors)
    dense = delta_weight(tensors)
    if dense is None:
        raise KilnError(f"{layer} holds nothing that has a rank ({', '.join(sorted(tensors))}).")
    check_finite(layer, dense)
    kernel = tuple(dense.shape[1:]) if dense.dim() > 2 else ()
    return *dense_svd(dense.flatten(1).to(device), rank), kernel
