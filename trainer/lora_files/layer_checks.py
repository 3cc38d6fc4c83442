"""Whether the tensors of one layer of a LoRA file fit each other, so that whatever uses them later need not ask."""

from __future__ import annotations

import math

from torch import Tensor

from .formulas import LayerTensors, shape_of

_ONE_NUMBER = ("alpha", "scalar")
_ANY_NUMBERS = (*_ONE_NUMBER, "reshape_weight")
_OF_OUTPUTS = ("lora_magnitude_vector", "lora_B.bias", "diff_b", "b_norm")
_KINDS = {
    "LoRA": ("lora_A.weight", "lora_B.weight"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"),
    "OFT": ("oft_blocks", "oft_R.weight"),
    "GLoRA": ("a1.weight", "b1.weight"),
    "diff": ("diff",),
    "w_norm": ("w_norm",),
    "set_weight": ("set_weight",),
}


def check_layer(tensors: LayerTensors) -> None:
    """Raise ValueError, whose message follows "the layer ... cannot be right,", when they do not fit."""
    for name, tensor in tensors.items():
        if not tensor.numel():
            raise ValueError(f"its {name} is empty")
        if name in _ONE_NUMBER and tensor.numel() != 1:
            raise ValueError(f"its {name} is not one number")
        if name not in _ONE_NUMBER and not tensor.dim():
            raise ValueError(f"its {name} is one number")
        if name not in _ANY_NUMBERS and not tensor.is_floating_point():
            raise ValueError(f"its {name} holds {str(tensor.dtype).removeprefix('torch.')}")
    kinds = [kind for kind, names in _KINDS.items() if any(name in tensors for name in names)]
    kinds = kinds if len(kinds) > 1 else [name for name in ("diff_b", "b_norm") if name in tensors]
    if len(kinds) > 1:  # loaders use one of them and drop the other
        raise ValueError(f"it holds {kinds[0]} and {kinds[1]} at once")
    if len({tensors[name].numel() for name in _OF_OUTPUTS if name in tensors}) > 1:
        raise ValueError("its biases and magnitudes differ in size")
    shape = shape_of(tensors)
    if shape is not None:
        out, inputs = shape
        for name in _OF_OUTPUTS:
            if name in tensors and tensors[name].numel() != out:
                raise ValueError(f"its {name} has {tensors[name].numel()} values for {out} outputs")
        _check_dora_scale(tensors.get("dora_scale"), out, inputs)
    _check_rotation(tensors)


def _check_dora_scale(scale: Tensor | None, out: int, inputs: int) -> None:
    """(out, 1), or (1, in) where a convolution's inputs count once for all places of its kernel."""
    if scale is None:
        return
    of_outputs = scale.dim() > 0 and len(scale) == scale.numel() == out
    of_inputs = scale.dim() > 1 and len(scale) == 1 and inputs % scale.numel() == 0
    if not (of_outputs or of_inputs):
        raise ValueError(f"its dora_scale is {tuple(scale.shape)} for {out} outputs and {inputs} inputs")


def _check_rotation(tensors: LayerTensors) -> None:
    blocks = tensors.get("oft_blocks")  # (blocks, b, b), of BOFT (m, blocks, b, b)
    if blocks is not None and (blocks.dim() not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]):
        raise ValueError(f"its oft_blocks are {tuple(blocks.shape)} and no square blocks")
    triangle = tensors.get("oft_R.weight")  # (blocks, b (b - 1) / 2)
    if triangle is not None and not (triangle.dim() == 2 and _is_triangle(triangle.shape[1])):
        raise ValueError(f"its oft_R is {tuple(triangle.shape)}, which are no triangles of square blocks")


def _is_triangle(entries: int) -> bool:
    side = (1 + math.isqrt(1 + 8 * entries)) // 2
    return side * (side - 1) // 2 == entries
