"""An adapter's state as the tensors of a file that ComfyUI's own loader reads, and others with it.

    lora, dora   lora_A.weight, lora_B.weight, alpha, dora_scale
    loha         hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, alpha
    lokr         lokr_w1, lokr_w2 or lokr_w2_a, lokr_w2_b; the scale is multiplied into lokr_w1
    oft          oft_blocks

Two files differ in meaning from what peft trains. `dora_scale` is measured against the length of the frozen rows,
peft's magnitude against that of the updated ones. A PiSSA file holds the difference to the start, at twice the rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from ..adapter.targets import layer_shape
from ..config import AdapterConfig
from .files import PREFIX


def to_file(state: Mapping[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """An adapter's state_dict -> default keys.

    Args:
        state: of any kind of adapter.
        config: the kind, rank, alpha and patterns it was made with.
    """
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in state.items():
        layer, part = _split(key)
        parts[layer][part] = tensor
    write = {"lora": _lora, "dora": _dora, "loha": _loha, "lokr": _lokr, "oft": _oft}[config.kind]
    return {
        f"{PREFIX}{layer}.{name}": tensor
        for layer, found in parts.items()
        for name, tensor in write(layer, found, config).items()
    }


def _split(key: str) -> tuple[str, str]:
    """ "blocks.0.q.lora_A.weight" -> ("blocks.0.q", "lora_A.weight")"""
    stem = key.removesuffix(".weight")
    layer, _, part = stem.rpartition(".")
    return layer, part + key[len(stem) :]


def _alpha(layer: str, rank: int, config: AdapterConfig) -> dict[str, Tensor]:
    """The alpha whose quotient by `rank` is the layer's scale; left out where the scale is 1."""
    alpha = layer_shape(layer, config).scale(config) * rank
    return {} if alpha == rank else {"alpha": torch.tensor(float(alpha))}


def _lora(layer: str, parts: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    a, b = parts["lora_A.weight"], parts["lora_B.weight"]
    if "start_A.weight" in parts:  # B A - B0 A0 = [B, -B0] [A; A0]
        a = torch.cat([a, parts["start_A.weight"]])
        b = torch.cat([b, -parts["start_B.weight"]], dim=1)
    return {"lora_A.weight": a, "lora_B.weight": b, **_alpha(layer, len(a), config)}


def _dora(layer: str, parts: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    scale = parts["lora_magnitude_vector.weight"] * parts["base_ratio"]
    return {**_lora(layer, parts, config), "dora_scale": scale[:, None].contiguous()}


def _loha(layer: str, parts: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    return {**parts, **_alpha(layer, layer_shape(layer, config).rank, config)}


def _lokr(layer: str, parts: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    shape = layer_shape(layer, config)
    return {**parts, "lokr_w1": parts["lokr_w1"] * (shape.alpha / shape.rank)}


def _oft(layer: str, parts: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """peft: R = (I - Q)(I + Q)^-1 with Q = U - U^T; the file: R = (I + q)(I - q)^-1 with q = blocks - blocks^T."""
    upper = parts["oft_R.weight"]  # (k, n (n - 1) / 2), the entries above the diagonal
    size = round((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)
    rows, columns = torch.triu_indices(size, size, 1)
    blocks = torch.zeros(len(upper), size, size)
    blocks[:, rows, columns] = -upper
    return {"oft_blocks": blocks}
