"""Extracts a LoRA from the difference of two model files, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import KilnError, shortened
from ..lora_files.double import to_double
from ..lora_files.keys import PREFIX
from ..lora_files.lora_weights import LoraWeights
from ..lora_files.svd import check_rank_and_energy, dense_svd, factors_from_svd, rank_for_energy
from .model_keys import (
    QUANTISATION_MARKER,
    QUANTISATION_SUFFIXES,
    find_prefix,
    find_scale,
    read_scalar,
)
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
        The LoRA, and a sentence on what it keeps and which tensors are left out. Differences of biases and norms are
        kept whole.

    Raises:
        KilnError: the files are damaged, share no layer, are of different size, or are equal.
    """
    check_rank_and_energy(rank, energy)
    lora = LoraWeights({}, {"lora_kiln.extract": f"{tuned.name} - {base.name}"})
    kept_energy, total_energy = 0.0, 0.0
    with SafetensorsFile(tuned) as tuned_file, SafetensorsFile(base) as base_file:
        pairs, left_out = _shared_tensors(tuned_file, base_file)
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
    share = 100 * kept_energy / max(total_energy, 1e-30)
    return lora, f"{factored} layers, {share:.2f} % of the energy kept{left_out}"


def _shared_tensors(
    tuned: SafetensorsFile, base: SafetensorsFile
) -> tuple[list[tuple[str, str, str, str]], str]:
    """The tensors that both files hold: (our layer, weight | bias | other, name in tuned, name in base); and what is
    left out, for the end of a sentence.

    Raises:
        KilnError: the files share no layer or only quantised ones, or a layer has another shape in each.
    """
    tuned_names, base_names = _model_tensors(tuned), _model_tensors(base)
    shared = [key for key in tuned_names if key in base_names and key[1] is not None]
    if not shared:
        raise KilnError(
            f"{tuned.path.name} and {base.path.name} share no layer; give two files of the same model."
        )
    pairs, quantised = [], []
    for layer, kind in shared:
        tuned_name, base_name = tuned_names[layer, kind], base_names[layer, kind]
        tuned_entry, base_entry = tuned.entries[tuned_name], base.entries[base_name]
        if not {tuned_entry.dtype, base_entry.dtype} <= set(FLOATS):  # packed, so of another shape too
            quantised.append(tuned_name)
            continue
        if tuned_entry.shape != base_entry.shape:
            raise KilnError(
                f"{tuned_name} is {tuned_entry.shape} in {tuned.path.name} and {base_entry.shape} in "
                f"{base.path.name}; give two files of the same model."
            )
        pairs.append((PREFIX + layer, str(kind), tuned_name, base_name))
    if not pairs:
        raise KilnError(
            f"All that {tuned.path.name} and {base.path.name} share is quantised, such as {_first(quantised)}; use the "
            "fp16, bf16 or fp8 files of the models."
        )
    parts = sorted({n for f in (tuned, base) for n in f.entries if not n.startswith(find_prefix(f))})
    names_of = {**base_names, **tuned_names}
    one = sorted(names_of[key] for key in tuned_names.keys() ^ base_names.keys() if key[1] is not None)
    said = [
        (
            one,
            f"; {len(one)} tensors are left out, for only one of the files has them, such as {_first(one)}",
        ),
        (
            quantised,
            f"; {len(quantised)} tensors are left out, for they are quantised, such as {_first(quantised)}",
        ),
        (
            parts,
            f"; {len(parts)} tensors are left out, for they are not the diffusion model's, such as {_first(parts)}",
        ),
    ]
    return pairs, "".join(sentence for names, sentence in said if names)


def _first(names: list[str]) -> str:
    return shortened(names[0], 100) if names else ""


def _model_tensors(file: SafetensorsFile) -> dict[tuple[str, str | None], str]:
    """Names of the diffusion model's tensors by layer and kind; of a whole checkpoint, those of its other parts are
    none of them."""
    prefix = find_prefix(file)
    names = (name for name in file.entries if name.startswith(prefix))
    return {_layer_and_kind(name.removeprefix(prefix)): name for name in names}


def _layer_and_kind(name: str) -> tuple[str, str | None]:
    """The layer and weight | bias | other of a tensor, without prefix; kind None for what describes a quantised
    weight."""
    if name.endswith((*QUANTISATION_SUFFIXES, QUANTISATION_MARKER)):
        return name, None
    layer, _, kind = name.rpartition(".")
    return (layer, kind) if kind in ("weight", "bias") else (name, "other")


def _read(file: SafetensorsFile, name: str) -> Tensor:
    """One tensor in fp32, dequantised."""
    value = file.read(name).float()
    scale = find_scale(file, name)
    return value if scale is None else value * read_scalar(file, scale)
