"""Several LoRAs into one.

Adding A factors and B factors apart is not the sum of the products: (B1 + B2)(A1 + A2) has cross terms. So either the
factors are laid side by side, which is exact and lets the ranks add up,

    w1 s1 B1 A1 + w2 s2 B2 A2 = [w1 s1 B1 | w2 s2 B2] [A1 ; A2]          s = alpha / rank

or the changes are made, merged as dense matrices by peft's own arithmetic (peft.utils.merge_utils: task arithmetic;
TIES, arXiv 2306.01708; DARE, arXiv 2311.03099) and brought back to a rank by SVD. The result's alpha is its rank.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import KilnError
from ..rng import derive_seed
from .files import LoraWeights
from .formulas import Parts, delta, family_of, layers_of, needs_base, shape_of
from .keys import NO_MODEL, model_of
from .lowrank import dense_svd, factors, kernel_of, product_svd, split

METHODS = ("exact", "svd", "task_arithmetic", "ties", "dare_linear", "dare_ties", "magnitude_prune")
BESIDE = (
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
)  # plain differences beside or instead of factors: weighted sums

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
    """One LoRA from several.

    Args:
        loras: in our keys; ranks, alphas and layers may differ.
        weights: strength of each.
        method: one of METHODS. exact: the weighted sum, ranks add. svd: the same at a rank. The others: see above.
        rank: of the result, for all but exact; 0: the sum of the ranks.
        density: share of the values kept, 0-1, for ties, dare and magnitude_prune.
        seed: of DARE's draws.
        device: where to factorise.

    Returns:
        The LoRA, and a sentence on ranks and kept energy.

    Raises:
        KilnError: the LoRAs are for different models, are of a kind that has no sum, or the settings are out of range.
    """
    _check(loras, weights, method, rank, density)
    every = [layers_of(lora) for lora in loras]
    names = list(dict.fromkeys(name for layers in every for name in layers))
    merged = LoraWeights({}, {"lora_kiln.merge": f"{method} of {len(loras)}, weights {list(weights)}"})
    kept, total, ranks = 0.0, 0.0, []
    for index, name in enumerate(names):
        tick(index, len(names))
        mine = [(layers[name], w) for layers, w in zip(every, weights, strict=True) if name in layers]
        _check_layer(name, [parts for parts, _ in mine])
        for part in BESIDE:
            found = [w * parts[part].float() for parts, w in mine if part in parts]
            if found:
                merged[f"{name}.{part}"] = torch.stack(found).sum(0)
        low = [(parts, w) for parts, w in mine if _has_rank(parts)]
        if not low:
            continue
        if method == "exact":
            new = _side_by_side(name, low)
        else:
            layer_seed = derive_seed(seed, "dare", zlib.crc32(name.encode()))
            new, energy, whole = _compressed(name, low, method, rank, density, layer_seed, device)
            kept, total = kept + energy, total + whole
        ranks.append(new["lora_A.weight"].shape[0])
        merged.update({f"{name}.{part}": tensor for part, tensor in new.items()})
    share = "exact" if method == "exact" else f"{100 * kept / max(total, 1e-30):.2f} % of the energy kept"
    span = "-".join(str(r) for r in sorted({min(ranks, default=0), max(ranks, default=0)}))
    return merged, f"{method} of {len(loras)} LoRAs: {len(names)} layers, rank {span}, {share}"


def _check(
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
    models = {model_of(layers_of(lora)) for lora in loras} - NO_MODEL
    if len(models) > 1:
        raise KilnError(
            f"The LoRAs are for different models, {' and '.join(sorted(models))}; merge LoRAs of one model."
        )


def _has_rank(parts: Parts) -> bool:
    return any(part.startswith(("lora_A", "hada_", "lokr_")) for part in parts)


def _check_layer(name: str, every: Sequence[Parts]) -> None:
    shapes = set()
    for parts in every:
        if needs_base(parts) or family_of(parts) == "GLoRA":
            raise KilnError(
                f"{name} is {family_of(parts)}, whose change depends on the model's own weight; merge it into the "
                f"model "
                "instead (Merge Into Model, Save Merged Model)."
            )
        shape = shape_of(parts)
        if shape is not None:
            shapes.add(shape)
    if len(shapes) > 1:
        raise KilnError(
            f"The LoRAs are for models of different size: {name} is {' and '.join(map(str, sorted(shapes)))}; merge "
            "LoRAs of one model."
        )


def _side_by_side(name: str, mine: Sequence[tuple[Parts, float]]) -> Parts:
    pairs = []
    for parts, weight in mine:
        pair = factors(parts)
        if pair is None:
            raise KilnError(
                f"{name} is {family_of(parts)}, which has no exact sum as a LoRA; choose the method svd."
            )
        pairs.append((pair[0] * weight, pair[1]))
    b, a = torch.cat([b for b, _ in pairs], 1), torch.cat([a for _, a in pairs], 0)
    kernel = kernel_of(mine[0][0])
    if kernel:
        a, b = a.reshape(len(a), *kernel), b.reshape(*b.shape, *[1] * (len(kernel) - 1))
    return {"lora_A.weight": a.contiguous(), "lora_B.weight": b.contiguous()}


def _compressed(
    name: str,
    mine: Sequence[tuple[Parts, float]],
    method: str,
    rank: int,
    density: float,
    seed: int,
    device: torch.device | None,
) -> tuple[Parts, float, float]:
    """The merged layer at a rank, its energy and the energy before."""
    pairs = [factors(parts) for parts, _ in mine]
    full = sum(pair[1].shape[0] for pair in pairs if pair is not None)
    if method == "svd" and all(pair is not None for pair in pairs):
        joined = _side_by_side(name, mine)
        b, a = joined["lora_B.weight"].flatten(1).to(device), joined["lora_A.weight"].flatten(1).to(device)
        u, s, vt = product_svd(b, a)
        kernel, whole = kernel_of(joined), float(s.double().square().sum())
    else:
        deltas = [delta(parts) for parts, _ in mine]
        found = [d for d in deltas if d is not None]
        dense = merge_dense(found, [w for _, w in mine], method, density, seed)
        kernel = tuple(dense.shape[1:]) if dense.dim() > 2 else ()
        matrix = dense.flatten(1).to(device)
        full = full or min(matrix.shape)
        u, s, vt = dense_svd(matrix, rank or full)
        whole = float(matrix.double().square().sum())
    chosen = min(rank or full, len(s))
    new = {part: tensor.cpu() for part, tensor in split(u, s, vt, chosen, kernel).items()}
    return new, float(s[:chosen].double().square().sum()), whole


def merge_dense(
    deltas: Sequence[Tensor], weights: Sequence[float], method: str, density: float, seed: int
) -> Tensor:
    """Dense changes of one layer, merged by peft's functions.

    Args:
        deltas: all of one shape, fp32, CPU.
        method: of METHODS; exact and svd are the weighted sum.
    """
    merge_utils = _peft_arithmetic()
    tensors, factor = [d.contiguous() for d in deltas], torch.tensor(list(weights), dtype=deltas[0].dtype)
    if method in ("exact", "svd", "task_arithmetic"):
        return merge_utils.task_arithmetic(tensors, factor)
    function = getattr(merge_utils, method)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The density"
        )  # 1 keeps everything: that is what was asked for
        torch.manual_seed(seed)
        return function(tensors, factor, density)


@functools.cache
def _peft_arithmetic() -> ModuleType:
    """peft.utils.merge_utils, read as a file of its own.

    It needs nothing but torch, and `import peft` would bring transformers with it and through that a torchvision,
    which must fit torch: a shell without ComfyUI may have one that does not.
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
