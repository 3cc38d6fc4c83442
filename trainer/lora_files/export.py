"""Converts an adapter's state_dict, as it is trained, to the tensors of a LoRA file, which ComfyUI's own loader reads.

    lora, dora   lora_A.weight, lora_B.weight, alpha, dora_scale
    loha         hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, alpha
    lokr         lokr_w1, lokr_w2 or lokr_w2_a, lokr_w2_b; the scale is multiplied into lokr_w1
    oft          oft_blocks

Two kinds differ from what peft trains. `dora_scale` is relative to the norm of the frozen rows, peft's magnitude to
the norm of the updated rows. The file of a PiSSA run holds the difference to the start values, at twice the rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..adapter.protocol import TEXT_ENCODER, split_state_key
from ..adapter.targets import layer_shape
from ..config import AdapterConfig
from .formulas import group_by_layer, is_zero
from .keys import PREFIX
from .text_encoder_names import is_text_encoder


def export_adapter(state: Mapping[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """Convert an adapter's state_dict to our keys.

    Args:
        state: by "<layer>.<name>", of any kind of adapter (see adapter/protocol.py).
        config: the kind, rank, alpha and patterns it was trained with.
    """
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in state.items():
        layer, name = split_state_key(key)
        layers[layer][name] = tensor
    convert = {"lora": _lora, "dora": _dora, "loha": _loha, "lokr": _lokr, "oft": _oft}[config.kind]
    return {
        f"{layer if is_text_encoder(layer) else PREFIX + layer}.{name}": tensor
        for layer, tensors in layers.items()
        for name, tensor in convert(layer.removeprefix(TEXT_ENCODER), tensors, config).items()
    }


def without_untouched(
    lora: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out the layers whose update is exactly zero: no gradient ever reached them.

    Such are the text side of Qwen-Image's last block, which the model does not use, and audio layers that were trained
    without sound. When no layer has an update, all stay.

    Args:
        lora: our keys, as export_adapter makes them.

    Returns:
        The others' tensors, and the names of the layers that are left out.
    """
    layers = group_by_layer(lora)
    untouched = [layer for layer, tensors in layers.items() if is_zero(tensors)]
    if len(untouched) == len(layers):
        return dict(lora), []
    left_out = set(untouched)
    kept = {
        f"{n}.{part}": t for n, tensors in layers.items() if n not in left_out for part, t in tensors.items()
    }
    return kept, [layer.removeprefix(PREFIX) for layer in untouched]


def _alpha(layer: str, rank: int, config: AdapterConfig, kernel: Sequence[int] = ()) -> dict[str, Tensor]:
    """The alpha for which alpha / rank is the layer's scale; nothing where the scale is 1, as readers then assume."""
    alpha = layer_shape(layer, config, kernel).scale(config) * rank
    return {} if alpha == rank else {"alpha": torch.tensor(float(alpha))}


def _lora(layer: str, tensors: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    if "start_A.weight" in tensors:  # B A - B0 A0 = [B, -B0] [A; A0]
        a = torch.cat([a, tensors["start_A.weight"]])
        b = torch.cat([b, -tensors["start_B.weight"]], dim=1)
    return {"lora_A.weight": a, "lora_B.weight": b, **_alpha(layer, len(a), config, a.shape[2:])}


def _dora(layer: str, tensors: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    scale = tensors["lora_magnitude_vector.weight"] * tensors["base_ratio"]
    return {**_lora(layer, tensors, config), "dora_scale": scale[:, None].contiguous()}


def _loha(layer: str, tensors: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    return {**tensors, **_alpha(layer, layer_shape(layer, config).rank, config)}


def _lokr(layer: str, tensors: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    shape = layer_shape(layer, config)
    return {**tensors, "lokr_w1": tensors["lokr_w1"] * (shape.alpha / shape.rank)}


def _oft(layer: str, tensors: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """peft: R = (I - Q)(I + Q)^-1 with Q = U - U^T; the file: R = (I + q)(I - q)^-1 with q = blocks - blocks^T.

    So q = -Q: the signs change.
    """
    upper = tensors["oft_R.weight"]  # (k, n (n - 1) / 2): k blocks, the entries above the diagonal
    size = round((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)
    rows, columns = torch.triu_indices(size, size, 1)
    blocks = torch.zeros(len(upper), size, size)
    blocks[:, rows, columns] = -upper
    return {"oft_blocks": blocks}
