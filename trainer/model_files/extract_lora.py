"""Extracts a LoRA from the difference of two model files, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import KilnError
from ..lora_files.double import to_double
from ..lora_files.keys import PREFIX
from ..lora_files.lora_weights import LoraWeights
from ..lora_files.svd import check_rank_and_energy, dense_svd, factors_from_svd, rank_for_energy
from .model_keys import PREFIXES, QUANTISATION_MARKER, QUANTISATION_SUFFIXES, find_scale, read_scalar
from .safetensors_file import FLOATS, SafetensorsFile


def extract_lora(
    tuned: Path,
    base: Path,
    rank: int,
    *,
    energy: float | None = None,
    device: torch.device | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LoraWeights, str]:
    """The best approximation of (tuned - base) as a LoRA of a rank.

    Args:
        tuned: .safetensors file of the fine-tuned model.
        base: .safetensors file of the model it was tuned from.
        rank: of every layer, 1 or more; with `energy`, the largest that a layer may get.
        energy: share (0-1) of each layer's difference to keep, by the smallest rank that does.
        device: where to factorise; the CPU without.
        tick: told the tensors done and in all; may raise to abandon.

    Returns:
        The LoRA, and a sentence on what it keeps. Differences of biases and norms are kept whole.

    Raises:
        KilnError: the files are damaged, share no layer, are of different size, or are equal.
    """
    check_rank_and_energy(rank, energy)
    lora = LoraWeights({}, {"lora_kiln.extract": f"{tuned.name} - {base.name}"})
    kept_energy, total_energy = 0.0, 0.0
    with SafetensorsFile(tuned) as tuned_file, SafetensorsFile(base) as base_file:
        pairs = _shared_tensors(tuned_file, base_file)
        for index, (layer, kind, tuned_name, base_name) in enumerate(pairs):
            tick(index, len(pairs))
            difference = _read(tuned_file, tuned_name) - _read(base_file, base_name)
            if not difference.any():
                continue
            if not difference.isfinite().all():
                raise KilnError(
                    f"{tuned_name} of {tuned.name} or {base.name} holds values that are no numbers; get the file again."
                )
            if difference.dim() < 2 or kind != "weight":
                lora[f"{layer}.{'diff_b' if kind == 'bias' else 'diff'}"] = difference
                continue
            matrix = difference.flatten(1).to(device)
            u, s, vt = dense_svd(matrix, rank)
            chosen = min(rank, len(s))
            if energy is not None:
                chosen = min(chosen, rank_for_energy(s, energy))
            kernel = tuple(difference.shape[1:]) if difference.dim() > 2 else ()
            lora.update(
                {f"{layer}.{p}": t.cpu() for p, t in factors_from_svd(u, s, vt, chosen, kernel).items()}
            )
            kept_energy += float(to_double(s[:chosen]).square().sum())
            total_energy += float(to_double(matrix).square().sum())
    if not lora:
        raise KilnError(f"{tuned.name} and {base.name} hold the same weights; there is nothing to extract.")
    factored = sum(key.endswith(".lora_A.weight") for key in lora)
    return lora, f"{factored} layers, {100 * kept_energy / max(total_energy, 1e-30):.2f} % of the energy kept"


def _shared_tensors(tuned: SafetensorsFile, base: SafetensorsFile) -> list[tuple[str, str, str, str]]:
    """The tensors that both files hold: (our layer, weight | bias | other, name in tuned, name in base).

    Raises:
        KilnError: the files share no layer, or a layer has another shape in each.
    """
    tuned_names = {_layer_and_kind(name): name for name in tuned.entries}
    base_names = {_layer_and_kind(name): name for name in base.entries}
    shared = [key for key in tuned_names if key in base_names and key[1] is not None]
    if not shared:
        raise KilnError(
            f"{tuned.path.name} and {base.path.name} share no layer; give two files of the same model."
        )
    pairs = []
    for layer, kind in shared:
        tuned_name, base_name = tuned_names[layer, kind], base_names[layer, kind]
        tuned_entry, base_entry = tuned.entries[tuned_name], base.entries[base_name]
        if tuned_entry.shape != base_entry.shape:
            raise KilnError(
                f"{tuned_name} is {tuned_entry.shape} in {tuned.path.name} and {base_entry.shape} in "
                f"{base.path.name}; give two files of the same model."
            )
        if tuned_entry.dtype in FLOATS and base_entry.dtype in FLOATS and kind is not None:
            pairs.append((PREFIX + layer, kind, tuned_name, base_name))
    return pairs


def _layer_and_kind(name: str) -> tuple[str, str | None]:
    """The layer and weight | bias | other of a tensor, without prefix; kind None for what describes a quantised
    weight."""
    if name.endswith((*QUANTISATION_SUFFIXES, QUANTISATION_MARKER)):
        return name, None
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    layer, _, kind = name.rpartition(".")
    return (layer, kind) if kind in ("weight", "bias") else (name, "other")


def _read(file: SafetensorsFile, name: str) -> Tensor:
    """One tensor in fp32, dequantised."""
    value = file.read(name).float()
    scale = find_scale(file, name)
    return value if scale is None else value * read_scalar(file, scale)
