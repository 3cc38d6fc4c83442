"""Put a LoRA into a model: peft makes the layers, the plain ones become fused.

`make_adapter` gives what the loop trains: its parameters by layer name, in a fixed order. `LoraAdapter` is the plain
LoRA; the other kinds are in kinds.py. An adapter changes only the module it is given, which is a twin (see twin.py), so
nothing has to be taken out again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import peft
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..config import AdapterConfig
from ..errors import KilnError
from ..rng import generator
from .fused import FrozenWeights, FusedLoraLinear, resident_weights, share_inputs

# diffusers' names for the layers of a Wan block -> the model's own
DIFFUSERS_ENDINGS = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "ff.net.0.proj": "ffn.0",
    "ffn.net.0.proj": "ffn.0",
    "ff.net.2": "ffn.2",
    "ffn.net.2": "ffn.2",
}
_NOT_BY_DEFAULT = re.compile(r"norm|mod(ulation)?\b|adaln|emb|time|router", re.IGNORECASE)
_REGEX_SIGNS = re.compile(r"[*()\[\]|\\^$+?{}]")


def linear_names(module: nn.Module) -> list[str]:
    """Full names of all linear layers, in model order."""
    return [name for name, m in module.named_modules() if is_linear(m)]


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, or a quantised layer that has the same attributes and another base class."""
    if isinstance(module, nn.Linear):
        return True
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
        chosen = [n for n in names if re.search(r"\.\d+\.", n) and not _NOT_BY_DEFAULT.search(n)]
    elif _REGEX_SIGNS.search(wanted):
        pattern = compile_expression(wanted, "target_modules")
        chosen = [n for n in names if pattern.fullmatch(n)]
    else:
        endings = [_known_ending(e, names) for e in wanted.replace(",", " ").split()]
        chosen = [n for n in names if _ends_with(n, endings)]
    if not chosen:
        raise _no_such_layer(wanted, names)
    if not unwanted.strip():
        return chosen
    out = compile_expression(unwanted, "exclude_modules")
    kept = [n for n in chosen if not out.search(n)]
    if not kept:
        raise KilnError(
            f"exclude_modules {unwanted!r} leaves out all {len(chosen)} layers; make it narrower."
        )
    return kept


def compile_expression(text: str, setting: str) -> re.Pattern[str]:
    """A user's regular expression; raises KilnError, naming the setting."""
    try:
        return re.compile(text.strip())
    except re.error as error:
        raise KilnError(f"{setting} is not a valid regular expression ({error}): {text!r}.") from error


def _known_ending(ending: str, names: list[str]) -> str:
    """The ending itself or its translation from diffusers, whichever some layer has."""
    for candidate in (ending, DIFFUSERS_ENDINGS.get(ending, ending)):
        if any(_ends_with(n, [candidate]) for n in names):
            return candidate
    raise _no_such_layer(ending, names)


def _no_such_layer(wanted: str, names: list[str]) -> KilnError:
    known = sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in names})
    return KilnError(
        f"target_modules {wanted!r} matches no linear layer of this model; names that exist end in "
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


def layer_shape(name: str, config: AdapterConfig) -> LayerShape:
    """Rank and alpha of the layer of that full name.

    Raises:
        KilnError: rank_pattern is malformed.
    """
    for part in filter(None, (p.strip() for p in config.rank_pattern.split(","))):
        expression, sign, numbers = part.rpartition("=")
        rank, _, alpha = numbers.partition(":")
        try:
            shape = LayerShape(int(rank), float(alpha) if alpha else config.alpha)
        except ValueError:
            shape = LayerShape(0, 0.0)
        if not sign or shape.rank < 1 or not shape.alpha > 0:
            raise KilnError(
                f"rank_pattern holds {part!r}; write expression=rank or expression=rank:alpha, such as ffn=16:8."
            )
        if compile_expression(expression, "rank_pattern").search(name):
            return shape
    return LayerShape(config.rank, config.alpha)


class Adapter(Protocol):
    """What the loop trains, whatever its kind. It lives in a twin (see twin.py)."""

    @property
    def has_base(self) -> bool:
        """Whether the frozen weights are there at the moment, in so far as state_dict needs them."""
        ...

    def set_step(self, seed: int, micro_step: int) -> None:
        """Switch training on for one forward and backward: chooses the dropout masks."""
        ...

    def rest(self) -> None:
        """Switch dropout off, for validation and sampling."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Everything trained, fp32, in model order."""
        ...

    def output_matrices(self) -> list[nn.Parameter]:
        """The B matrices, for LoRA+; none for kinds without them."""
        ...

    def limit_norms(self) -> None:
        """Scale updates down to max_weight_norm; after every step."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """By "<layer>.<part>": copies on the CPU, fp32."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse; raises KilnError for other layers or shapes."""
        ...


def make_adapter(
    module: nn.Module,
    config: AdapterConfig,
    seed: int,
    weights: FrozenWeights = resident_weights,
    device: torch.device | None = None,
) -> Adapter:
    """Inject a fresh adapter of the kind that `config` names.

    Raises:
        KilnError: no layer matches, or the settings do not go together.
    """
    if config.kind != "lora" and (config.init != "default" or config.max_weight_norm):
        raise KilnError(
            f"init and max_weight_norm are for the kind lora, and the kind is {config.kind}; set init to default and "
            "max_weight_norm to 0."
        )
    if config.rank_dropout and config.kind in ("dora", "oft"):
        raise KilnError(f"rank_dropout is not for the kind {config.kind}; set it to 0 and use dropout.")
    if config.kind == "lora":
        return LoraAdapter(module, config, seed, weights, device)
    from .kinds import PeftAdapter

    return PeftAdapter(module, config, seed, weights, device)


class _WithoutStart:
    """FrozenWeights of a layer whose update starts at its own largest directions: those are taken off, W - s B0 A0."""

    def __init__(self, weights: FrozenWeights, a: Tensor, b: Tensor, scale: float) -> None:
        self._weights, self.a, self.b, self._scale = weights, a, b, scale

    @contextmanager
    def __call__(self, layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        with self._weights(layer, like) as (weight, bias):
            rest = torch.addmm(weight.float(), self.b, self.a, alpha=-self._scale)
            yield rest.to(weight.dtype), bias


class LoraAdapter(Adapter):
    """A LoRA inside a module.

    Attributes:
        config: rank, alpha, dropout.
        layers: the LoRA layers by full layer name, in model order.
    """

    def __init__(
        self,
        module: nn.Module,
        config: AdapterConfig,
        seed: int,
        weights: FrozenWeights = resident_weights,
        device: torch.device | None = None,
    ) -> None:
        """Inject a fresh LoRA: A random (Kaiming uniform, a = sqrt 5, as peft does) from the seed, B zero, or as
        config.init says."""
        self.config = config
        targets = choose_targets(module, config.target_modules, config.exclude_modules)
        with torch.random.fork_rng(devices=[]):  # peft draws its own start values; ours follow below
            peft.inject_adapter_in_model(_peft_config(config, targets), module, "default")
        found = dict(module.named_modules())
        self.layers: dict[str, FusedLoraLinear] = {}
        for index, name in enumerate(targets):
            layer = found[name]
            assert isinstance(layer, PeftLinear), f"peft made {type(layer).__name__} of {name}"
            fused = FusedLoraLinear.fuse(layer, weights, index, config.rank_dropout)
            a, b = fused.matrices
            # Drawn on the CPU, whatever the device, so that a seed means the same start everywhere
            a.data, b.data = (torch.empty(p.shape, dtype=torch.float32, device=device) for p in (a, b))
            self._initialise(fused, a, b, generator(seed, "init", index))
            self.layers[name] = fused
        share_inputs(self.layers)

    def _initialise(
        self, layer: FusedLoraLinear, a: nn.Parameter, b: nn.Parameter, draws: torch.Generator
    ) -> None:
        rank, kind = len(a), self.config.init
        if kind == "orthogonal":
            # Odd and even rows of one orthogonal matrix, so that B A = 0 with neither zero: as peft's init
            # "orthogonal", drawn from our own generator
            if rank % 2:
                raise KilnError(f"init orthogonal needs even ranks and one is {rank}; choose an even rank.")
            q = torch.linalg.qr(torch.randn(rank, rank, generator=draws))[0]
            a.data.copy_(q[0::2].T @ torch.randn(rank // 2, a.shape[1], generator=draws) / 10)
            b.data.copy_(torch.randn(b.shape[0], rank // 2, generator=draws) @ q[1::2] / 10)
            return
        start = torch.empty(a.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=draws)
        a.data.copy_(start)
        nn.init.zeros_(b.data)
        if kind == "pissa":
            self._start_at_largest(layer, a, b, draws)

    def _start_at_largest(
        self, layer: FusedLoraLinear, a: nn.Parameter, b: nn.Parameter, draws: torch.Generator
    ) -> None:
        """PiSSA (Meng et al. 2024, arXiv 2404.02948): A0, B0 are the largest singular directions of W; the frozen
        part is what remains. Subspace iteration, as W can be large."""
        with layer.weights(layer.base_layer, a) as (weight, _):
            w = weight.detach().float()
            basis = torch.randn(w.shape[1], len(a) + 8, generator=draws).to(w.device)
            for _ in range(4):
                basis = torch.linalg.qr(w.T @ (w @ basis))[0]
            u, values, v = torch.linalg.svd(w @ basis, full_matrices=False)
        root = (values[: len(a)] / layer.scale).sqrt()
        b.data.copy_(u[:, : len(a)] * root)
        a.data.copy_(root[:, None] * (v[: len(a)] @ basis.T))
        layer.weights = _WithoutStart(layer.weights, a.detach().clone(), b.detach().clone(), layer.scale)

    has_base = True  # state_dict needs nothing of the frozen weights

    def set_step(self, seed: int, micro_step: int) -> None:
        for layer in self.layers.values():
            layer.set_step(seed, micro_step)

    def rest(self) -> None:
        for layer in self.layers.values():
            layer.rest()

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every layer, in model order."""
        return [p for a, b in self._pairs() for p in (a, b)]

    def output_matrices(self) -> list[nn.Parameter]:
        return [b for _, b in self._pairs()]

    @torch.no_grad()
    def limit_norms(self) -> None:
        """|s B A| in the Frobenius norm, by way of the two small Gram matrices: tr((A A^T)(B^T B))."""
        limit = self.config.max_weight_norm
        if not limit:
            return
        for layer, (a, b) in zip(self.layers.values(), self._pairs(), strict=True):
            square = ((a @ a.T) * (b.T @ b)).sum().clamp(min=0)
            factor = (limit / (layer.scale * square.sqrt()).clamp(min=1e-12)).clamp(max=1).sqrt()
            a.mul_(factor)
            b.mul_(factor)

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [layer.matrices for layer in self.layers.values()]

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, (a, b) in zip(self.layers, self._pairs(), strict=True):
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
            start = self.layers[name].weights
            if isinstance(start, _WithoutStart):
                tensors |= {f"{name}.start_A.weight": start.a, f"{name}.start_B.weight": start.b}
        return tensors

    def state_dict(self) -> dict[str, Tensor]:
        """ "<layer>.lora_A.weight" (r, in) and "<layer>.lora_B.weight" (out, r), and with PiSSA "start_A", "start_B" of
        the same shapes: copies on the CPU, fp32."""
        return {k: t.detach().to("cpu", torch.float32, copy=True) for k, t in self._tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of state_dict.

        Raises:
            KilnError: other layers or another rank.
        """
        load_tensors(self._tensors(), state)


def load_tensors(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Copy a saved state into an adapter's tensors; raises KilnError when one is missing or has another shape."""
    for key, tensor in tensors.items():
        if key not in state or state[key].shape != tensor.shape:
            found = tuple(state[key].shape) if key in state else "nothing"
            raise KilnError(
                f"The saved adapter does not fit: {key} has {found}, this run needs {tuple(tensor.shape)}. "
                "Use the rank and target modules it was made with, or start a new run."
            )
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(state[key])


def target_pattern(targets: list[str]) -> str:
    """The exact names as one anchored expression: a list would match endings, so that "head" also takes "x.head"."""
    return rf"^(?:{'|'.join(re.escape(t) for t in targets)})$"


def _peft_config(config: AdapterConfig, targets: list[str]) -> peft.LoraConfig:
    shapes = {re.escape(t): layer_shape(t, config) for t in targets}
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=target_pattern(targets),
        bias="none",
        use_rslora=config.rank_stabilised,
        rank_pattern={t: s.rank for t, s in shapes.items() if s.rank != config.rank},
        alpha_pattern={t: s.alpha for t, s in shapes.items() if s.alpha != config.alpha},
    )
