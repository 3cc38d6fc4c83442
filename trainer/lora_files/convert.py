"""From our keys to the keys of each format that can be written (keys.FORMATS), and the fields of a peft config.

Ours are "diffusion_model.<layer>.lora_A.weight" / ".lora_B.weight", with ".alpha" where alpha differs from the rank.
kohya always writes alpha. diffusers and peft never write it as a tensor: it stands in the file's metadata
(diffusers) and in adapter_config.json (peft), see `peft_config_fields`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import KilnError
from ..families import Family, family_of_layers
from .formulas import LayerTensors, group_by_layer, kind_of, listed, rank_of, shape_of, unknown_keys
from .keys import diffusers_prefix, spell_layer, spell_part
from .split_layers import split_rows
from .text_encoder_names import is_text_encoder, network_of, spell_text_layers

log = logging.getLogger(__name__)


def convert_keys(lora: Mapping[str, Tensor], format: str) -> dict[str, Tensor]:
    """A LoRA under the keys of another format.

    Args:
        lora: our keys.
        format: one of keys.FORMATS.

    Raises:
        KilnError: the format cannot hold this kind of adapter.
    """
    converted: dict[str, Tensor] = {}
    for spelled, tensors in spelled_layers(lora, format).items():
        _check_format(spelled, tensors, format)
        rank = rank_of(tensors)
        if format == "kohya" and rank is not None:
            tensors.setdefault("alpha", torch.tensor(float(rank)))
        for part, tensor in tensors.items():
            if part == "alpha" and format in ("diffusers", "peft"):
                continue
            kernel_dims = tensors.get("lora_A.weight", tensor).dim() - 2
            part, tensor = _convert_magnitude(part, tensor, format, kernel_dims)
            converted[spelled + spell_part(part, format)] = tensor
    unknown = unknown_keys(lora)
    if format in ("comfyui", "kohya"):
        converted |= {key: lora[key] for key in unknown}
    elif unknown:
        log.warning("Not written, for %s has no place for them: %s", format, listed(unknown))
    return converted


def family_of(lora: Mapping[str, Tensor]) -> Family | None:
    """The model family that a LoRA is for, by names and shapes of its layers."""
    layers = {k: t for k, t in group_by_layer(lora).items() if not is_text_encoder(k)}
    return family_of_layers(layers, {name: shape_of(tensors) for name, tensors in layers.items()})


def spelled_layers(lora: Mapping[str, Tensor], format: str) -> dict[str, LayerTensors]:
    """The tensors of each layer by its spelling in a format; layers that are several there are split.

    Args:
        lora: our keys.
        format: one of keys.FORMATS.

    Raises:
        KilnError: the format has no name for a layer, or its kind of adapter cannot be split.
    """
    family, layers = family_of(lora), group_by_layer(lora)
    of_text = spell_text_layers(layers, format)
    spelled: dict[str, LayerTensors] = {}
    for layer, tensors in layers.items():
        names = (of_text[layer],) if layer in of_text else spell_layer(layer, format, family)
        parts = [tensors] if len(names) == 1 else split_rows(layer, tensors, len(names))
        spelled |= dict(zip(names, parts, strict=True))
    return spelled


def _check_format(layer: str, tensors: LayerTensors, format: str) -> None:
    """Raise KilnError when the format cannot hold the layer's kind of adapter."""
    kind = kind_of(tensors)
    if format == "diffusers" and kind not in ("LoRA", "DoRA"):
        others = "comfyui or kohya" if kind in ("difference", "GLoRA") else "comfyui or peft"
        raise KilnError(f"diffusers loads LoRA and DoRA only, and {layer} is {kind}; save it as {others}.")
    if format == "peft" and (
        kind in ("difference", "GLoRA") or "oft_blocks" in tensors or "lora_mid.weight" in tensors
    ):
        raise KilnError(
            f"peft has no adapter such as {layer} ({', '.join(sorted(tensors))}); save it as comfyui or kohya."
        )
    if format in ("diffusers", "peft") and "diff_b" in tensors:
        raise KilnError(
            f"{format} has no place for the change of a bias, as {layer} has one; save it as comfyui."
        )
    if format in ("comfyui", "kohya") and "oft_R.weight" in tensors:
        raise KilnError(f"{layer} is an OFT of peft's kind, which only peft reads; save it as peft.")


def _convert_magnitude(part: str, tensor: Tensor, format: str, kernel_dims: int) -> tuple[str, Tensor]:
    """DoRA's magnitude under the name and in the shape of a format; every other tensor as it is.

    Args:
        part: the tensor's name within its layer.
        tensor: (out, 1[, 1, 1]) in ComfyUI's and kohya's files, (out,) or (1, out, 1, 1) in diffusers' and peft's.
        format: one of keys.FORMATS.
        kernel_dims: number of dimensions of a convolution's kernel, 0 or less for a linear layer.
    """
    if part == "lora_magnitude_vector" and format in ("comfyui", "kohya"):
        return "dora_scale", tensor.reshape(-1, 1, *[1] * kernel_dims)
    if part == "dora_scale" and format in ("diffusers", "peft"):
        if tensor.shape[0] == 1:
            raise KilnError(
                f"This DoRA scales columns, and {format} only knows rows; save it as comfyui or kohya."
            )
        rows = tensor.reshape(1, -1, *[1] * kernel_dims) if kernel_dims > 0 else tensor.flatten()
        return "lora_magnitude_vector", rows
    return part, tensor


def peft_config_fields(lora: Mapping[str, Tensor], format: str) -> dict[str, Any]:
    """The fields of a peft config that describe a LoRA: ranks, alphas and target modules.

    r and alpha are those of most layers; rank_pattern and alpha_pattern list the layers that differ.

    Args:
        lora: our keys.
        format: "diffusers" or "peft"; says how layers are called.

    Raises:
        KilnError: layers hold kinds of adapters that one config cannot describe.
    """
    return _fields(spelled_layers(lora, format), format, diffusers_prefix(format, family_of(lora)))


def diffusers_metadata(lora: Mapping[str, Tensor]) -> dict[str, Any]:
    """What diffusers reads in a file's metadata: the fields of a peft config for each network, its prefix before them.

    Raises:
        KilnError: as peft_config_fields.
    """
    own = diffusers_prefix("diffusers", family_of(lora))
    networks: dict[str, dict[str, LayerTensors]] = {}
    for spelled, tensors in spelled_layers(lora, "diffusers").items():
        networks.setdefault(network_of(spelled) or own, {})[spelled] = tensors
    return {
        f"{prefix}{name}": value
        for prefix, layers in networks.items()
        for name, value in _fields(layers, "diffusers", prefix).items()
    }


def _fields(layers: Mapping[str, LayerTensors], format: str, prefix: str) -> dict[str, Any]:
    kinds = {kind_of(tensors) for tensors in layers.values()}
    if len(kinds) > 1 and not kinds <= {"LoRA", "DoRA"}:
        raise KilnError(f"A {format} adapter is of one kind, and this LoRA mixes {', '.join(sorted(kinds))}.")
    names = {layer: layer.removeprefix(prefix) for layer in layers}
    ranks = {names[k]: rank_of(t) or _unfactorised_rank(t) for k, t in layers.items()}
    alphas = {
        names[k]: float(t["alpha"]) if "alpha" in t else float(ranks[names[k]]) for k, t in layers.items()
    }
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    kind = next(iter(kinds)) if kinds else "LoRA"
    fields: dict[str, Any] = {
        "r": rank,
        "target_modules": sorted(names.values()),
        "rank_pattern": {k: v for k, v in ranks.items() if v != rank},
        "alpha_pattern": {k: v for k, v in alphas.items() if v != alpha},
    }
    if kind in ("LoRA", "DoRA"):
        return {
            **fields,
            "lora_alpha": alpha,
            "use_dora": "DoRA" in kinds,
            "lora_dropout": 0.0,
            "bias": "none",
        }
    if kind == "OFT":
        return {"r": 0, "oft_block_size": _oft_block_size(layers), "target_modules": fields["target_modules"]}
    return {**fields, "alpha": alpha, **_lokr_fields(layers)}


def _unfactorised_rank(tensors: LayerTensors) -> int:
    """A rank at which peft keeps both LoKr matrices whole instead of factorising them."""
    return max(tensors["lokr_w2"].shape[:2]) if "lokr_w2" in tensors else 8


def _oft_block_size(layers: Mapping[str, LayerTensors]) -> int:
    """n, from the n (n - 1) / 2 entries above the diagonal that peft stores of each n x n block."""
    sizes = {round((1 + (1 + 8 * t["oft_R.weight"].shape[1]) ** 0.5) / 2) for t in layers.values()}
    if len(sizes) != 1:
        raise KilnError("This OFT has blocks of several sizes, which a peft adapter cannot hold.")
    return sizes.pop()


def _lokr_fields(layers: Mapping[str, LayerTensors]) -> dict[str, Any]:
    """peft's decompose_both and decompose_factor of a LoKr; nothing for other kinds."""
    w1_factorised = any("lokr_w1_a" in tensors for tensors in layers.values())
    w1_sizes = {tensors["lokr_w1"].shape[0] for tensors in layers.values() if "lokr_w1" in tensors}
    if not any(part.startswith("lokr_") for tensors in layers.values() for part in tensors):
        return {}
    return {
        "decompose_both": w1_factorised,
        "decompose_factor": max(w1_sizes, default=-1) if len(w1_sizes) == 1 else -1,
    }
