"""How many values autograd keeps for backward, by block: a model of networks, not a measurement.

    linear layer that is trained    its input and output, for every token. Layers of one block that read the same input
                                    share it; what a block keeps beside (norms, attention) is about as much
    fused q, k and v                 its input and output, and what norms and rotations of q and k keep
    convolution                     its input, and as much for the norm and for the nonlinearity before it

Where a block is computed again, the gradients that are on their way in it count too. Where its attention and MLP are
computed again apart (parts.py), the largest of them counts, an MLP in chunks as what goes in and comes out.

A network that has no convolutions in its blocks has the same number of tokens everywhere, but for layers that read the
caption alone. A UNet has fewer places
further inside: each block that is nothing but one convolution changes the resolution, the first half of them by 1/2
along each side, the others back. Tests hold all of it against what torch really keeps.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..families import FUSED_QKV as FUSED
from ..families import READS_CAPTION
from .blocks import find_blocks, is_token_wise, parts_of

CONVOLUTION = 3  # times its input: that of the norm, of the nonlinearity and its own
FUSED_QKV = (
    3.5  # times its input, beside input and output: q and k before their norm and before their rotation
)
GRADIENT = 0.5  # of the widest output
FUSED_GRADIENT = 3  # of that of a fused q, k and v, whose gradient is put together of pieces
PARTS = 8  # widths beside the largest part: inputs of the others, gradients, attention's fp32 accumulator
TEXT_ROWS = 512  # of a caption, where a layer reads nothing else


class Activations:
    """Of one item.

    Attributes:
        whole: values kept when nothing is recomputed.
        inputs: values of the input of each block.
    """

    def __init__(self, module: nn.Module, targets: list[str], latent_shape: tuple[int, ...]) -> None:
        """targets: full names of the layers that are trained. latent_shape: (C, [F,] h, w)."""
        layers = dict(module.named_modules())
        trained = {id(layers[t]): layers[t] for t in targets}
        blocks = find_blocks(module)
        places = _places(module, blocks, tokens(module, latent_shape))
        narrowest = min(map(_narrow_side, trained.values()))
        names = {id(layers[t]): t for t in targets}

        def kept(member: nn.Module) -> int:
            name = names.get(id(member), "")
            count = min(places[id(member)], TEXT_ROWS) if READS_CAPTION.search(name) else places[id(member)]
            return int(_kept(member, id(member) in trained, bool(FUSED.search(name))) * count)

        self._blocks: list[int] = []
        self._gradients: list[int] = []
        self._parts: list[int] = []
        self.inputs: list[int] = []
        inside: set[int] = set()
        for block in blocks:
            members = list(block.modules())
            inside.update(map(id, members))
            self._blocks.append(sum(map(kept, members)))
            width = _width(members, trained, narrowest) * places[id(block)]
            self.inputs.append(width)
            widest = [
                _gradient(m, names[id(m)]) * places[id(m)]
                for m in members
                if id(m) in trained and not READS_CAPTION.search(names[id(m)])
            ]
            self._gradients.append(int(max(widest, default=0)))
            apart = {id(m) for part in parts_of(block) for m in part.modules()}
            rest = sum(kept(m) for m in members if id(m) not in apart)
            largest = max(
                (2 * width if is_token_wise(p) else sum(map(kept, p.modules())) for p in parts_of(block)),
                default=0,
            )
            self._parts.append(
                rest + largest + PARTS * width if apart else self._blocks[-1] + self._gradients[-1]
            )
        self._outside = sum(kept(m) for i, m in trained.items() if i not in inside)
        self.whole = sum(self._blocks) + self._outside

    def recomputed(self, offload_inputs: bool, parts: bool = False) -> int:
        """When blocks are computed again: the largest of them, and the inputs of all (of two that are on their way)."""
        if not self._blocks:
            return self.whole
        inputs = sorted(self.inputs)[-2:] if offload_inputs else self.inputs
        whole = [b + g for b, g in zip(self._blocks, self._gradients, strict=True)]
        largest = max(map(min, self._parts, whole)) if parts else max(whole)
        return largest + sum(inputs) + self._outside


def tokens(module: nn.Module, latent_shape: tuple[int, ...]) -> int:
    """Places of a latent that the network sees at its entrance: its elements over the patch."""
    patch = getattr(module, "patch_size", 1 if _changes(find_blocks(module)) else 2)
    sides = [int(p) for p in patch] if isinstance(patch, tuple | list) else [int(patch)] * 2
    return max(1, math.prod(latent_shape[1:]) // math.prod(sides))


def _places(module: nn.Module, blocks: list[nn.Module], at_entrance: int) -> dict[int, int]:
    """The number of places at each module, by its id, following the model's order."""
    changes = [id(block) for block in _changes(blocks)]
    down, up = set(changes[: len(changes) // 2]), set(changes[len(changes) // 2 :])
    level = 0
    found: dict[int, int] = {}
    below: set[int] = set()
    for each in module.modules():
        if below and id(each) not in below:  # the block that makes it smaller has been left
            level, below = level + 1, set()
        if id(each) in up:
            level -= 1
        if id(each) in down:
            below = {id(m) for m in each.modules()}
        found[id(each)] = max(1, at_entrance >> (2 * level))
    return found


def _changes(blocks: list[nn.Module]) -> list[nn.Module]:
    """Blocks that change the resolution; as many up as down, or the network is not a UNet."""
    found = [b for b in blocks if _is_one_convolution(b)]
    return found if len(found) % 2 == 0 else []


def _is_one_convolution(block: nn.Module) -> bool:
    own = [m for m in block.modules() if _weight(m) is not None]
    return len(own) == 1 and _is_convolution(own[0]) and len({*_shape(own[0])[:2]}) == 1


def _kept(layer: nn.Module, is_trained: bool, fused: bool) -> float:
    """Values per place."""
    if is_trained:
        extra = FUSED_QKV * int(layer.in_features) if fused else 0  # type: ignore[arg-type]
        return int(layer.in_features + layer.out_features) + extra  # type: ignore[operator]
    if _is_convolution(layer):
        return CONVOLUTION * _shape(layer)[1]
    return 0


def _gradient(layer: nn.Module, name: str) -> float:
    """Values per place that a layer's gradients take while they are on their way."""
    width = int(layer.out_features)  # type: ignore[arg-type]
    return (FUSED_GRADIENT if FUSED.search(name) else GRADIENT) * width


def _width(members: list[nn.Module], trained: dict[int, nn.Module], otherwise: int) -> int:
    """Values per place of a block's input: what its first convolution reads, or the narrowest side of its trained
    layers, as good as always the model's own."""
    first = next((m for m in members if _is_convolution(m)), None)
    if first is not None:
        return _shape(first)[1]
    sides = [_narrow_side(m) for m in members if id(m) in trained]
    return min(sides, default=otherwise)


def _narrow_side(linear: nn.Module) -> int:
    return min(int(linear.in_features), int(linear.out_features))  # type: ignore[arg-type]


def _is_convolution(layer: nn.Module) -> bool:
    """Of more than one place."""
    shape = _shape(layer)
    return len(shape) > 3 and math.prod(shape[2:]) > 1


def _weight(layer: nn.Module) -> Tensor | None:
    weight = layer._parameters.get("weight")
    return weight


def _shape(layer: nn.Module) -> tuple[int, ...]:
    weight = _weight(layer)
    return () if weight is None else tuple(weight.shape)
