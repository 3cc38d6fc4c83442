"""Merges several LoRAs into one.

Adding A matrices and B matrices separately is not the sum of the products: (B1 + B2)(A1 + A2) has cross terms. So
either the factors are concatenated, which is exact and makes the rank the sum of the ranks,

    w1 s1 B1 A1 + w2 s2 B2 A2 = [w1 s1 B1 | w2 s2 B2] [A1 ; A2]          s = alpha / rank

or the products are merged as dense matrices by peft's own functions (peft.utils.merge_utils: task arithmetic; TIES,
arXiv 2306.01708; DARE, arXiv 2311.03099) and reduced to a rank by SVD. The result's alpha is its rank.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import KilnError
from ..rng import derive_seed
from .double import to_double
from .formulas import (
    LayerTensors,
    delta_weight,
    group_by_layer,
    kind_of,
    listed,
    needs_base_weight,
    same_shape,
    shape_of,
    unknown_keys,
)
from .keys import NO_MODEL, model_of
from .lora_weights import LoraWeights
from .metadata import merged_metadata
from .svd import check_finite, dense_svd, factors_from_svd, kernel_shape, low_rank_factors, product_svd

log = logging.getLogger(__name__)
METHODS = ("exact", "svd", "task_arithmetic", "ties", "dare_linear", "dare_ties", "magnitude_prune")
_DIFFERENCES = ("diff", "diff_b")  # merged as weighted sums

Tick = Callable[[int, int], None]  # layers done, layers in all


def merge_loras(
    loras: Sequence[LoraWeights],
    weights: Sequence[float],
    method: str = "exact",
    *,
    rank: int = 0,
    density: float = 0.5,
    seed: int = 0,
    device: torch.device | None = None,
    tick: Tick = lambda done, total: None,
) -> tuple[LoraWeights, str]:
    """Merge several LoRAs into one.

    Args:
        loras: in our keys; ranks, alphas and layers may differ.
        weights: strength of each, any finite number.
        method: one of METHODS. exact: the weighted sum, at the sum of the ranks. svd: the same, reduced to `rank`. The
            others: see the head of this file.
        rank: of the result, for all methods but exact; 0: the sum of the ranks.
        density: share (above 0, at most 1) of the values kept, for ties, dare and magnitude_prune.
        seed: of DARE's random draws.
        device: where to factorise; where the tensors are without.
        tick: called before each layer.

    Returns:
        The LoRA, and a sentence on ranks and kept energy.

    Raises:
        KilnError: the LoRAs are for different models, are of a kind that cannot be added (DoRA, OFT, GLoRA), or the
            settings are out of range.
    """
    # Longer than others: one pass over the layers, most of it what is counted for the sentence
    _check_settings(loras, weights, method, rank, density)
    if unknown := [key for lora in loras for key in unknown_keys(lora)]:
        log.warning("Not merged, for they belong to no layer: %s", listed(unknown))
    grouped = [_same_names(group_by_layer(lora)) for lora in loras]
    names = list(dict.fromkeys(name for layers in grouped for name in layers))
    how = f"{method} of {len(loras)}, weights {list(weights)}"
    merged = LoraWeights({}, merged_metadata(loras, how))
    kept_energy, total_energy, ranks = 0.0, 0.0, []
    for index, name in enumerate(names):
        tick(index, len(names))
        weighted = [(layers[name], w) for layers, w in zip(grouped, weights, strict=True) if name in layers]
        _check_layer(name, [tensors for tensors, _ in weighted])
        merged.update({f"{name}.{part}": t for part, t in _sums(name, weighted).items()})
        factorised = [(tensors, w) for tensors, w in weighted if _has_rank(tensors)]
        if not factorised:
            continue
        if f"{name}.diff" in merged:  # loaders use a difference or factors of a layer, and never both
            factorised = [(tensors, w) for tensors, w in weighted if _has_rank(tensors) or "diff" in tensors]
            del merged[f"{name}.diff"]
        if method == "exact" and any("diff" in tensors for tensors, _ in factorised):
            merged[f"{name}.diff"] = _dense_sum(factorised)
            continue
        if method == "exact":
            new = _concatenate(name, factorised)
        else:
            layer_seed = derive_seed(seed, "dare", zlib.crc32(name.encode()))
            new, kept, total = _merge_at_rank(name, factorised, method, rank, density, layer_seed, device)
            kept_energy, total_energy = kept_energy + kept, total_energy + total
        ranks.append(new["lora_A.weight"].shape[0])
        merged.update({f"{name}.{part}": tensor for part, tensor in new.items()})
    for key, tensor in merged.items():
        check_finite(key, tensor)
    remains = _what_remains(grouped, weights, group_by_layer(merged))
    if remains:
        log.warning("The merge%s.", remains)
    share = (
        "exact"
        if method == "exact"
        else f"{100 * kept_energy / max(total_energy, 1e-30):.2f} % of the energy kept"
    )
    span = "-".join(str(r) for r in sorted({min(ranks, default=0), max(ranks, default=0)}))
    return merged, f"{method} of {len(loras)} LoRAs: {len(names)} layers, rank {span}, {share}{remains}"


def _same_names(layers: dict[str, LayerTensors]) -> dict[str, LayerTensors]:
    """LyCORIS' differences of norms under the names of all others."""
    same = {"w_norm": "diff", "b_norm": "diff_b"}
    return {layer: {same.get(n, n): t for n, t in tensors.items()} for layer, tensors in layers.items()}


def _sums(name: str, weighted: Sequence[tuple[LayerTensors, float]]) -> LayerTensors:
    """The weighted sums of one layer's differences. Raises KilnError where they differ in shape."""
    sums: LayerTensors = {}
    for part in _DIFFERENCES:
        differences = [w * tensors[part].float() for tensors, w in weighted if part in tensors]
        _check_same_shape(f"{name}.{part}", differences)
        if differences:
            sums[part] = torch.stack([d.reshape(differences[0].shape) for d in differences]).sum(0)
    return sums


def _check_same_shape(name: str, tensors: Sequence[Tensor]) -> None:
    """Raises KilnError where they are not of one shape, but for dimensions of 1."""
    if not all(same_shape(tensor.shape, tensors[0].shape) for tensor in tensors):
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        raise KilnError(
            f"The LoRAs are for models of different size: {name} is {' and '.join(map(str, shapes))}; merge LoRAs of "
            "one model."
        )


def _dense_sum(weighted: Sequence[tuple[LayerTensors, float]]) -> Tensor:
    """The weighted sum of one layer's changes, of which some are plain differences, as one of them."""
    changes = [(delta_weight(tensors), weight) for tensors, weight in weighted]
    like = next(tensors["diff"] for tensors, _ in weighted if "diff" in tensors)
    return torch.stack([change.reshape(like.shape) * w for change, w in changes if change is not None]).sum(0)


def _what_remains(
    parts: Sequence[Mapping[str, LayerTensors]],
    weights: Sequence[float],
    merged: Mapping[str, LayerTensors],
) -> str:
    """What to say where the parts cancel each other, or are zero: their rounding may be all that is left of them."""
    energies = [weight**2 * _energy(layers) for layers, weight in zip(parts, weights, strict=True)]
    tensors = [t for layers in parts for layer in layers.values() for n, t in layer.items() if n != "alpha"]
    coarsest = max((torch.finfo(t.dtype).eps for t in tensors if t.is_floating_point()), default=0.0)
    left = _energy(merged)
    if not left:
        return "; nothing is left: the weighted LoRAs are zero or cancel each other"
    if left < max(coarsest / 2, 1e-6) ** 2 * sum(energies):
        return "; the LoRAs cancel each other: what is left is no more than the rounding of their numbers"
    return ""


def _energy(layers: Mapping[str, LayerTensors]) -> float:
    """The sum of the squares of all changes."""
    total = 0.0
    for tensors in layers.values():
        factors = low_rank_factors(tensors)
        if factors is not None:
            b, a = (to_double(t) for t in factors)
            total += float(((b.T @ b) * (a @ a.T)).sum().clamp_min(0))
        elif _has_rank(tensors) and (delta := delta_weight(tensors)) is not None:
            total += float(to_double(delta).square().sum())
        total += sum(
            float(to_double(tensors[name]).square().sum()) for name in _DIFFERENCES if name in tensors
        )
    return total


def _check_settings(
    loras: Sequence[LoraWeights], weights: Sequence[float], method: str, rank: int, density: float
) -> None:
    if method not in METHODS:
        raise KilnError(f"method is {method!r}; choose one of {', '.join(METHODS)}.")
    if not loras or len(loras) != len(weights):
        raise KilnError(
            f"{len(loras)} LoRAs and {len(weights)} weights were given; give each LoRA one weight."
        )
    if not 0 < density <= 1:
        raise KilnError(f"density is {density}; it must lie above 0 and be at most 1.")
    if rank < 0:
        raise KilnError(f"rank is {rank}; it must be 0, for the sum of the ranks, or more.")
    for weight in weights:
        if not math.isfinite(weight):
            raise KilnError(f"A weight is {weight}; give each LoRA a number.")
    models = {model_of(group_by_layer(lora)) for lora in loras} - NO_MODEL
    if len(models) > 1:
        raise KilnError(
            f"The LoRAs are for different models, {' and '.join(sorted(models))}; merge LoRAs of one model."
        )


def _has_rank(tensors: LayerTensors) -> bool:
    """Whether the layer has factors (LoRA, LoHa, LoKr), and not only plain differences."""
    return any(part.startswith(("lora_A", "hada_", "lokr_")) for part in tensors)


def _check_layer(name: str, candidates: Sequence[LayerTensors]) -> None:
    """Raise KilnError when one layer's adapters cannot be added: by their kind, or because their shapes differ."""
    shapes = set()
    for tensors in candidates:
        if needs_base_weight(tensors) or kind_of(tensors) == "GLoRA":
            raise KilnError(
                f"{name} is {kind_of(tensors)}, whose change depends on the model's own weight; merge it into the "
                "model instead (Merge Into Model, Save Merged Model)."
            )
        shape = shape_of(tensors)
        if shape is not None:
            shapes.add(shape)
    if len(shapes) > 1:
        raise KilnError(
            f"The LoRAs are for models of different size: {name} is {' and '.join(map(str, sorted(shapes)))}; merge "
            "LoRAs of one model."
        )


def _concatenate(name: str, weighted: Sequence[tuple[LayerTensors, float]]) -> LayerTensors:
    """The exact weighted sum of one layer's LoRAs: their A stacked as rows, their B side by side.

    Args:
        name: the layer's, for messages.
        weighted: each LoRA's tensors and its weight.

    Raises:
        KilnError: one is no plain product B A (LoHa, LoKr, Tucker).
    """
    pairs = []
    for tensors, weight in weighted:
        factors = low_rank_factors(tensors)
        if factors is None:
            raise KilnError(
                f"{name} is {kind_of(tensors)}, which has no exact sum as a LoRA; choose the method svd."
            )
        pairs.append((factors[0] * weight, factors[1]))
    b, a = torch.cat([b for b, _ in pairs], 1), torch.cat([a for _, a in pairs], 0)
    kernel = kernel_shape(weighted[0][0])
    if kernel:
        a, b = a.reshape(len(a), *kernel), b.reshape(*b.shape, *[1] * (len(kernel) - 1))
    return {"lora_A.weight": a.contiguous(), "lora_B.weight": b.contiguous()}


def _merge_at_rank(
    name: str,
    weighted: Sequence[tuple[LayerTensors, float]],
    method: str,
    rank: int,
    density: float,
    seed: int,
    device: torch.device | None,
) -> tuple[LayerTensors, float, float]:
    """One layer merged and reduced to a rank: its tensors, the energy kept, and the energy before the reduction."""
    pairs = [low_rank_factors(tensors) for tensors, _ in weighted]
    rank_sum = sum(pair[1].shape[0] for pair in pairs if pair is not None)
    if method == "svd" and all(pair is not None for pair in pairs):
        exact = _concatenate(name, weighted)
        b, a = exact["lora_B.weight"].flatten(1).to(device), exact["lora_A.weight"].flatten(1).to(device)
        check_finite(name, b, a)
        u, s, vt = product_svd(b, a)
        kernel, total_energy = kernel_shape(exact), float(to_double(s).square().sum())
    else:
        found = [d for d in (delta_weight(tensors) for tensors, _ in weighted) if d is not None]
        dense = merge_dense(
            [d.reshape(max((d.shape for d in found), key=len)) for d in found],
            [w for _, w in weighted],
            method,
            density,
            seed,
        )
        kernel = tuple(dense.shape[1:]) if dense.dim() > 2 else ()
        matrix = dense.flatten(1).to(device)
        check_finite(name, matrix)
        if None in pairs:  # of a LoHa or a difference: any rank
            rank_sum = min(matrix.shape)
        u, s, vt = dense_svd(matrix, rank or rank_sum)
        total_energy = float(to_double(matrix).square().sum())
    chosen = min(rank or rank_sum, len(s))
    new = {part: tensor.cpu() for part, tensor in factors_from_svd(u, s, vt, chosen, kernel).items()}
    return new, float(to_double(s[:chosen]).square().sum()), total_energy


def merge_dense(
    deltas: Sequence[Tensor], weights: Sequence[float], method: str, density: float, seed: int
) -> Tensor:
    """Merge the weight differences of one layer by peft's functions.

    Args:
        deltas: all of one shape, fp32, CPU.
        weights: one for each.
        method: one of METHODS; exact and svd are the weighted sum.
        density: share (0-1) of the values kept.
        seed: of DARE's random draws; torch's global generator is left as it was.

    Returns:
        The merged difference, of the same shape.
    """
    merge_utils = _peft_arithmetic()
    tensors, factor = [d.contiguous() for d in deltas], torch.tensor(list(weights), dtype=deltas[0].dtype)
    if method in ("exact", "svd", "task_arithmetic"):
        return merge_utils.task_arithmetic(tensors, factor)
    function = getattr(merge_utils, method)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")  # 1 keeps everything, as the caller chose
        torch.manual_seed(seed)
        return function(tensors, factor, density)


@functools.cache
def _peft_arithmetic() -> ModuleType:
    """The module peft.utils.merge_utils, loaded from its file without importing peft.

    It needs only torch, while `import peft` imports transformers and through it torchvision, which must fit torch: a
    shell without ComfyUI may have one that does not.
    """
    package = importlib.util.find_spec("peft")
    if package is None or package.origin is None:
        raise KilnError("Merging by this method needs the package peft: pip install peft.")
    path = Path(package.origin).parent / "utils" / "merge_utils.py"
    spec = importlib.util.spec_from_file_location("lora_kiln_peft_merge_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
