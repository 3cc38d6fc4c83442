"""The plain LoRA: peft makes the layers, which become fused (fused.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import peft
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from ..config import AdapterConfig
from ..errors import KilnError
from ..rng import generator
from .conv import LoraConv
from .frozen_weights import FrozenWeights, resident_weights
from .fused import FusedLoraLinear, share_inputs
from .peft_config import lora_config
from .protocol import Adapter, load_tensors, without_gradient
from .targets import choose_convolutions, choose_targets, layer_shape


class _ResidualWeights:
    """FrozenWeights of a PiSSA layer: the residual W - s B0 A0, with A0 (r, in), B0 (out, r) the start of A and B."""

    def __init__(self, weights: FrozenWeights, a: Tensor, b: Tensor, scale: float) -> None:
        self._weights, self.a, self.b, self._scale = weights, a, b, scale

    @contextmanager
    def __call__(self, layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        with self._weights(layer, like) as (weight, bias):
            residual = torch.addmm(weight.float(), self.b, self.a, alpha=-self._scale)
            yield residual.to(weight.dtype), bias


class LoraAdapter(Adapter):
    """A LoRA inside a module.

    Attributes:
        config: rank, alpha, dropout.
        layers: the LoRA layers by full layer name, in model order.
        convolutions: those of convolutions.
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
        with torch.random.fork_rng(devices=[]):  # peft draws start values too; ours follow below
            peft.inject_adapter_in_model(lora_config(config, targets), module, "default")
        modules = dict(module.named_modules())
        self.layers: dict[str, FusedLoraLinear] = {}
        self.convolutions: dict[str, LoraConv] = {}
        for index, name in enumerate(targets):
            layer = modules[name]
            assert isinstance(layer, PeftLinear), f"peft made {type(layer).__name__} of {name}"
            for part in (layer.lora_A["default"], layer.lora_B["default"]):
                empty = torch.empty(part.weight.shape, dtype=torch.float32, device=device)
                part.weight = nn.Parameter(empty)
            fused = FusedLoraLinear.fuse(layer, weights, index, config.rank_dropout)
            a, b = fused.matrices
            # Drawn on the CPU, whatever the device, so that a seed means the same start everywhere
            self._initialise(fused, a, b, generator(seed, "init", index))
            self.layers[name] = fused
        share_inputs(self.layers)
        for index, name in enumerate(choose_convolutions(module, config), len(targets)):
            self.convolutions[name] = self._add_convolution(module, name, index, seed, device)

    def _add_convolution(
        self, module: nn.Module, name: str, index: int, seed: int, device: torch.device | None
    ) -> LoraConv:
        """Put a LoRA beside a convolution of the network: A random as a linear layer's, B zero."""
        config = self.config
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        shape = layer_shape(name, config, layer.kernel_size)
        dropout = {"dropout": config.dropout, "rank_dropout": config.rank_dropout}
        made = LoraConv(layer, shape.rank, shape.scale(config), index, device=device, **dropout)
        start = torch.empty(made.lora_A.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator(seed, "init", index))
        made.lora_A.data.copy_(start)
        nn.init.zeros_(made.lora_B.data)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, made)
        return made

    def _initialise(
        self, layer: FusedLoraLinear, a: nn.Parameter, b: nn.Parameter, draws: torch.Generator
    ) -> None:
        rank, kind = len(a), self.config.init
        if kind == "orthogonal":
            # Odd and even rows of one orthogonal matrix, so that B A = 0 with neither zero: as peft's init
            # "orthogonal", drawn from the seed
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
            self._pissa_start(layer, a, b, draws)

    def _pissa_start(
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
        layer.weights = _ResidualWeights(layer.weights, a.detach().clone(), b.detach().clone(), layer.scale)

    weights_loaded = True  # state_dict needs nothing of the frozen weights

    def set_step(self, seed: int, micro_step: int) -> None:
        for layer in self._all.values():
            layer.set_step(seed, micro_step)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        layers = self._all.values()
        for layer in layers:
            layer.is_off = True
        try:
            yield
        finally:
            for layer in layers:
                layer.is_off = False

    @contextmanager
    def reversed(self) -> Iterator[None]:
        layers = self._all.values()
        for layer in layers:
            layer.sign = -1.0
        try:
            yield
        finally:
            for layer in layers:
                layer.sign = 1.0

    def disable_dropout(self) -> None:
        for layer in self._all.values():
            layer.disable_dropout()

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every layer, in model order."""
        return [p for a, b in self._pairs() for p in (a, b)]

    def output_matrices(self) -> list[nn.Parameter]:
        return [b for _, b in self._pairs()]

    def layers_without_gradient(self) -> list[str]:
        return without_gradient({name: list(layer.matrices) for name, layer in self._all.items()})

    @torch.no_grad()
    def limit_norms(self) -> None:
        """|s B A| in the Frobenius norm, by way of the two small Gram matrices: tr((A A^T)(B^T B))."""
        limit = self.config.max_weight_norm
        if not limit:
            return
        for layer, (a, b) in zip(self._all.values(), self._pairs(), strict=True):
            rows, columns = a.flatten(1), b.flatten(1)
            square = ((rows @ rows.T) * (columns.T @ columns)).sum().clamp(min=0)
            factor = (limit / (layer.scale * square.sqrt()).clamp(min=1e-12)).clamp(max=1).sqrt()
            a.mul_(factor)
            b.mul_(factor)

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [layer.matrices for layer in self._all.values()]

    @property
    def _all(self) -> dict[str, FusedLoraLinear | LoraConv]:
        return {**self.layers, **self.convolutions}

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, layer in self._all.items():
            a, b = layer.matrices
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
            weights = getattr(layer, "weights", None)
            if isinstance(weights, _ResidualWeights):
                tensors |= {f"{name}.start_A.weight": weights.a, f"{name}.start_B.weight": weights.b}
        return tensors

    def state_dict(self) -> dict[str, Tensor]:
        """ "<layer>.lora_A.weight" (r, in[, k, k]) and "<layer>.lora_B.weight" (out, r[, 1, 1]), and with PiSSA
        "start_A", "start_B" of the same shapes: copies on the CPU, fp32."""
        return {k: t.detach().to("cpu", torch.float32, copy=True) for k, t in self._tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of state_dict.

        Raises:
            KilnError: other layers or another rank.
        """
        load_tensors(self._tensors(), state)
