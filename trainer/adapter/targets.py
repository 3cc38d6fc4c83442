"""Which layers of a network get an adapter, and of what rank."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..config import AdapterConfig
from ..errors import KilnError, shortened
from ..families import FAMILIES, NEVER_DEFAULT_TARGETS
from ..parsers import split_signs
from ..patterns import Patterns, compile_pattern

_REGEX_SIGNS = re.compile(r"[*()\[\]|\\^$+?{}]")


def linear_names(module: nn.Module) -> list[str]:
    """Full names of all linear layers, in model order."""
    return [name for name, m in module.named_modules() if is_linear(m)]


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, or a quantised layer that has the same attributes and another base class."""
    if isinstance(module, nn.Linear):
        return True
    from peft.tuners.tuners_utils import BaseTunerLayer  # slow: nodes import this file when the host starts

    if isinstance(module, BaseTunerLayer) or not all(
        hasattr(module, n) for n in ("in_features", "out_features")
    ):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def choose_targets(module: nn.Module, wanted: str, unwanted: str = "") -> list[str]:
    """Full names of the layers that get a LoRA.

    Args:
        module: the network.
        wanted: AdapterConfig.target_modules.
        unwanted: AdapterConfig.exclude_modules.

    Raises:
        KilnError: nothing matches, or a regular expression is malformed.
    """
    names = linear_names(module)
    if not wanted.strip():
        # Blocks are members of a ModuleList, so their layers' names hold a number: "blocks.3.ffn.0"
        chosen = [n for n in names if re.search(r"\.\d+\.", n) and not NEVER_DEFAULT_TARGETS.search(n)]
    elif _REGEX_SIGNS.search(wanted):
        pattern = compile_pattern(wanted, "target_modules")
        chosen = [n for n in names if pattern.fullmatch(n)]
    else:
        endings = [_known_ending(e, names) for e in dict.fromkeys(" ".join(split_signs(wanted)).split())]
        chosen = [n for n in names if _ends_with(n, endings)]
    if not chosen:
        raise _no_such_layer(wanted, names)
    if not unwanted.strip():
        return chosen
    out = compile_pattern(unwanted, "exclude_modules")
    kept = [n for n in chosen if not out.search(n)]
    if not kept:
        raise KilnError(
            f"exclude_modules {shortened(repr(unwanted))} leaves out all {len(chosen)} layers; make it narrower."
        )
    return kept


def choose_convolutions(module: nn.Module, config: AdapterConfig) -> list[str]:
    """Full names of the convolutions that get a LoRA: those inside the blocks, where conv_rank is not 0.

    Raises:
        KilnError: the network has no convolutions in blocks, or all are left out.
    """
    if not config.conv_rank:
        return []
    unwanted = (
        compile_pattern(config.exclude_modules, "exclude_modules") if config.exclude_modules.strip() else None
    )
    found = [
        name
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and m.groups == 1
        and m.padding_mode == "zeros"
        and re.search(r"\.\d+\.", name)
        and not NEVER_DEFAULT_TARGETS.search(name)
        and not (unwanted and unwanted.search(name))
    ]
    if not found:
        raise KilnError("This model has no convolutions in its blocks; set conv_rank to 0.")
    return found


def _known_ending(ending: str, names: list[str]) -> str:
    """The ending itself or what a family calls it whose diffusers name it is, whichever some layer has."""
    for candidate in (ending, *(f.target_aliases[ending] for f in FAMILIES if ending in f.target_aliases)):
        if any(_ends_with(n, [candidate]) for n in names):
            return candidate
    raise _no_such_layer(ending, names)


def _no_such_layer(wanted: str, names: list[str]) -> KilnError:
    known = sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in names})
    return KilnError(
        f"target_modules {shortened(repr(wanted))} matches no linear layer of this model; names that exist end in "
        f"{', '.join(known[:12])}."
    )


def _ends_with(name: str, endings: Iterable[str]) -> bool:
    return any(name == e or name.endswith("." + e) for e in endings)


@dataclass(frozen=True)
class LayerShape:
    """What one layer's update is made of."""

    rank: int
    alpha: float

    def scale(self, config: AdapterConfig) -> float:
        """Factor on the product of the two matrices."""
        return self.alpha / (math.sqrt(self.rank) if config.rank_stabilised else self.rank)


def layer_shape(name: str, config: AdapterConfig, kernel: Sequence[int] = ()) -> LayerShape:
    """Rank and alpha of the layer of that full name.

    Args:
        name: the layer's.
        config: the adapter's.
        kernel: a convolution's kernel size; one of 1 counts as a linear layer, as kohya does it.

    Raises:
        KilnError: rank_pattern is malformed.
    """
    found = _rank_pattern(config.rank_pattern, config.alpha).first(name)
    if found is not None:
        return found
    if any(size > 1 for size in kernel):
        return LayerShape(
            config.conv_rank, config.conv_alpha or config.alpha * config.conv_rank / config.rank
        )
    return LayerShape(config.rank, config.alpha)


@functools.lru_cache(maxsize=32)
def _rank_pattern(text: str, alpha: float) -> Patterns[LayerShape]:
    """AdapterConfig.rank_pattern. Raises KilnError: it is malformed."""
    shapes: list[tuple[str, LayerShape]] = []
    for part in split_signs(text):
        expression, sign, numbers = part.rpartition("=")
        rank, _, own_alpha = numbers.partition(":")
        try:
            shape = LayerShape(int(rank), float(own_alpha) if own_alpha else alpha)
        except ValueError:
            shape = LayerShape(0, 0.0)
        if not sign or shape.rank < 1 or not 0 < shape.alpha < math.inf:
            raise KilnError(
                f"rank_pattern holds {shortened(repr(part))}; write expression=rank or expression=rank:alpha, such as "
                "ffn=16:8."
            )
        shapes.append((expression, shape))
    return Patterns(shapes, "rank_pattern")
