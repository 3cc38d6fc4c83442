"""How the weight of one frozen layer of the host comes to be used: resident, offloaded, patched, quantised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import comfy.ops
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....trainer.adapter.targets import is_linear
from ....trainer.memory.mapped import is_mapped
from ....trainer.memory.plain import is_plain
from ....trainer.memory.shared_clone import is_shared, original_of

DYNAMIC_STATE = frozenset(
    {
        *("_v", "_v_signature", "_v_weight", "_v_bias", "_v_block", "_v_block_faulted"),
        *("_pins", "_pin_state", "_prefetch", "_comfy_graph", "_comfy_cross_step_state"),
    }
)
"""What host 0.33's dynamic loader ("aimdo") notes on the layers of a model: addresses, pinned copies, transfers. They
belong to the model's own layers alone."""


def host_weights(layer: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
    """FrozenWeights of the host's layers: resident, offloaded, of another type, with patches to apply, (scaled) fp8,
    quantised. What it yields may be lent: its memory is the next weight's after the `with` block."""
    own_cast = getattr(layer, "cast_bias_weight", None)
    if own_cast is not None:  # ComfyUI-GGUF's layers dequantise and patch their weight themselves
        return nullcontext(own_cast(like))
    weight = layer.weight
    if not is_cast(layer) and weight.dtype == like.dtype and is_plain(weight):
        return nullcontext((weight, layer.bias))  # type: ignore[arg-type]
    return _cast(layer, like)


def is_cast(layer: nn.Module) -> bool:
    """Whether a layer of the host casts its weight at each call: from another device or type, or with patches."""
    return bool(layer.comfy_cast_weights or layer.weight_function or layer.bias_function)


@contextmanager
def _cast(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """By the host's own routine; handed back as soon as they have been used."""
    source = _loaded_layer(layer)
    try:
        weight, bias, stream = comfy.ops.cast_bias_weight(source, like, offloadable=True)
    except BaseException:
        # Host 0.33 leaves the note of a transfer that failed on the layer, and takes it for the next one's
        source.__dict__.pop("_prefetch", None)
        raise
    try:
        scale = getattr(layer, "scale_weight", None)  # scaled fp8 on host 0.3.75; 0.33 dequantises by itself
        inputs = getattr(layer, "pre_quant_scale", None)  # host 0.33: what the inputs are to be multiplied by
        for factor in (scale, inputs):
            weight = weight if factor is None else weight * factor.to(weight)
        yield (weight.dequantize() if isinstance(weight, QuantizedTensor) else weight), bias
    finally:
        comfy.ops.uncast_bias_weight(source, weight, bias, stream)


def _loaded_layer(layer: nn.Module) -> nn.Module:
    """The layer that the host is to cast. Host 0.33's dynamic loader keeps notes on each layer (DYNAMIC_STATE) and on
    its parameters, which a clone must neither have twice nor lack: there it is the original, unless the clone's layer
    has another weight than the original's (a block that is streamed, a quantised base)."""
    original = original_of(layer)
    if original is None or not hasattr(original, "_v"):
        return layer
    shared = is_shared(layer._parameters.get("weight"), original._parameters.get("weight"))
    return original if shared else layer


def as_linear_layers(module: nn.Module) -> None:
    """Make the quantised linear layers of a shared clone nn.Linear: the host's (comfy.ops.mixed_precision_ops) are no
    nn.Linear, which peft asks for. Their behaviour stays theirs."""
    classes: dict[type, type] = {}
    for layer in module.modules():
        kind = type(layer)
        if is_linear(layer) and not isinstance(layer, nn.Linear):
            if kind not in classes:
                classes[kind] = type(kind.__name__, (kind, nn.Linear), {})
            layer.__class__ = classes[kind]


def bytes_in_ram(module: nn.Module) -> int:
    """What a network's weights take of CPU memory, without those that are a mapped file: ours, or host 0.33's."""

    def is_file(tensor: Tensor) -> bool:
        host_maps = type(tensor) is nn.Parameter and hasattr(
            tensor.untyped_storage(), "_comfy_tensor_mmap_refs"
        )
        return host_maps or is_mapped(tensor)

    return sum(
        p.numel() * p.element_size() for p in module.parameters() if p.device.type == "cpu" and not is_file(p)
    )
