"""A LoRA out of the difference of two model files, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import KilnError
from ..lora_files.keys import PREFIX
from ..lora_files.lora_weights import LoraWeights
from ..lora_files.svd import check_rank_and_energy, dense_svd, factors_from_svd, rank_for_energy
from .merge_into_file import MARKER, QUANTISED_ONLY, SCALES
from .safetensors_file import FLOATS, FP8, SafetensorsFile


def extract_lora(
    tuned: Path,
    base: Path,
    rank: int,
    *,
    energy: float | None = None,
    device: torch.device | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LoraWeights, str]:
    """The best LoRA of a rank that turns one model into another.

    Args:
        tuned, base: .safetensors files of the same model.
        rank: of every layer; with `energy`, the most a layer may have.
        energy: share 0-1 of each layer's difference to keep, by as small a rank as does it.
        device: where to factorise.

    Returns:
        The LoRA, and a sentence on what it keeps. Differences of biases and norms are kept whole.

    Raises:
        KilnError: the files are damaged, share no layer, are of different size, or are equal.
    """
    check_rank_and_energy(rank, energy)
    lora, kept, total = LoraWeights({}, {"lora_kiln.extract": f"{tuned.name} - {base.name}"}), 0.0, 0.0
    with SafetensorsFile(tuned) as after, SafetensorsFile(base) as before:
        pairs = _pairs(after, before)
        for index, (layer, kind, one, two) in enumerate(pairs):
            tick(index, len(pairs))
            change = _read(after, one) - _read(before, two)
            if not change.any():
                continue
            if not change.isfinite().all():
                raise KilnError(
                    f"{one} of {tuned.name} or {base.name} holds values that are no numbers; get the file again."
                )
            if change.dim() < 2 or kind != "weight":
                lora[f"{layer}.{'diff_b' if kind == 'bias' else 'diff'}"] = change
                continue
            matrix = change.flatten(1).to(device)
            u, s, vt = dense_svd(matrix, rank)
            chosen = min(rank, len(s))
            if energy is not None:
                chosen = min(chosen, rank_for_energy(s, energy))
            kernel = tuple(change.shape[1:]) if change.dim() > 2 else ()
            lora.update(
                {f"{layer}.{p}": t.cpu() for p, t in factors_from_svd(u, s, vt, chosen, kernel).items()}
            )
            kept, total = (
                kept + float(s[:chosen].double().square().sum()),
                total + float(matrix.double().square().sum()),
            )
    if not lora:
        raise KilnError(f"{tuned.name} and {base.name} hold the same weights; there is nothing to extract.")
    factored = sum(key.endswith(".lora_A.weight") for key in lora)
    return lora, f"{factored} layers, {100 * kept / max(total, 1e-30):.2f} % of the energy kept"


def _pairs(after: SafetensorsFile, before: SafetensorsFile) -> list[tuple[str, str, str, str]]:
    """(our layer, weight | bias | other, name in one file, name in the other) of what both hold."""
    ours = {_place(after, name): name for name in after.entries}
    theirs = {_place(before, name): name for name in before.entries}
    shared = [place for place in ours if place in theirs and place[1] is not None]
    if not shared:
        raise KilnError(
            f"{after.path.name} and {before.path.name} share no layer; give two files of the same model."
        )
    found = []
    for layer, kind in shared:
        one, two = ours[layer, kind], theirs[layer, kind]
        shapes = after.entries[one].shape, before.entries[two].shape
        if shapes[0] != shapes[1]:
            raise KilnError(
                f"{one} is {shapes[0]} in {after.path.name} and {shapes[1]} in {before.path.name}; give two files of "
                "the same model."
            )
        if after.entries[one].dtype in FLOATS and before.entries[two].dtype in FLOATS and kind is not None:
            found.append((PREFIX + layer, kind, one, two))
    return found


def _place(file: SafetensorsFile, name: str) -> tuple[str, str | None]:
    """Where a tensor belongs, whatever prefix its file uses; kind None for what describes a quantised weight."""
    if name.endswith((*QUANTISED_ONLY, MARKER)):
        return name, None
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        name = name.removeprefix(prefix)
    layer, _, kind = name.rpartition(".")
    return (layer, kind) if kind in ("weight", "bias") else (name, "other")


def _read(file: SafetensorsFile, name: str) -> Tensor:
    value = file.read(name).float()
    if file.entries[name].dtype in FP8:
        for scale in (name.removesuffix(".weight") + ending for ending in SCALES):
            if scale in file.entries:
                value *= float(file.read(scale).float().max())
    return value
