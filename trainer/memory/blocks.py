"""The blocks of a network: the units that are recomputed, streamed and compiled, in model order.

A block is a member of a list (ModuleList, Sequential, ModuleDict) that is made of several layers. Nested lists are
flattened, since a network may iterate over such a list without calling it, as UNets do. A member with nearly all of its
weights in an inner list, such as the deep attention stages of SDXL, is replaced by that list's members: the smaller the
blocks, the less memory two of them take. What is in no block (single layers, the embedding of text and time) is small.

Adapters do not change the result: a layer with one (peft's, around a base_layer) counts as its base layer.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
ACTIVATIONS = (nn.GELU, nn.SiLU, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Mish, nn.Softplus, nn.Dropout, nn.Identity)
CHAIN_SHARE = 0.9  # of a member's weights, from which on it counts as a chain; experts side by side hold less


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """Each block once. Empty where a network has none: then nothing can be recomputed or streamed block by block."""
    blocks = list(_blocks_in(module))
    # A block registered under a second name is found twice, the second time with the blocks inside it
    inner = {id(m) for block in blocks for m in block.modules() if m is not block}
    return list({id(b): b for b in blocks if id(b) not in inner}.values())


def parts_of(block: nn.Module) -> list[nn.Module]:
    """The attentions and MLPs of a block: its children with two linear layers or more."""
    return [m for m in block.children() if not _is_linear(m) and sum(map(_is_linear, m.modules())) > 1]


def is_token_wise(part: nn.Module) -> bool:
    """Whether it is a chain of linear layers and activations, which take each token by itself."""
    chain = isinstance(part, nn.Sequential | nn.ModuleList)
    return chain and all(_is_linear(m) or isinstance(m, ACTIVATIONS) for m in part.children())


def _is_linear(module: nn.Module) -> bool:
    if _has_adapter(module):
        return True
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2


def _blocks_in(module: nn.Module) -> Iterator[nn.Module]:
    in_list = isinstance(module, LISTS)
    for child in module.children():
        if in_list and _is_made_of_layers(child) and not _is_chain(child):
            yield child
        elif not _has_adapter(child):
            yield from _blocks_in(child)


def _is_made_of_layers(module: nn.Module) -> bool:
    return not isinstance(module, LISTS) and not _has_adapter(module) and any(map(_size, module.children()))


def _is_chain(module: nn.Module) -> bool:
    """Whether nearly all weights are in one list of two members or more that are made of layers."""
    for inner in module.modules():
        if isinstance(inner, LISTS):
            members = [m for m in inner.children() if _is_made_of_layers(m)]
            if len(members) > 1 and sum(map(_size, members)) >= CHAIN_SHARE * _size(module):
                return True
    return False


def _has_adapter(module: nn.Module) -> bool:
    return "base_layer" in module._modules


def _size(module: nn.Module) -> int:
    """Its weights, without those of adapters."""
    if _has_adapter(module):
        return _size(module._modules["base_layer"])  # type: ignore[arg-type]
    own = sum(p.numel() for p in module._parameters.values() if p is not None)
    return own + sum(map(_size, module.children()))
