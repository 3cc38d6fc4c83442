"""The adapters beside the plain LoRA: DoRA, LoHa, LoKr and OFT, each peft's own layer.

Two things differ from plain peft. The base layer is a FrozenLinear. And whatever a layer draws while training (dropout
of inputs, outputs, layers or blocks) comes from a seed of the step and the layer.

OFT rotates the outputs of a layer, as files of that name mean it (Qiu et al. 2023, arXiv 2306.07280: W' = R W); peft's
layer would rotate the inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..config import AdapterConfig
from ..rng import derive_seed
from .frozen import FrozenLinear
from .frozen_weights import FrozenWeights
from .peft_config import peft_config
from .protocol import Adapter, load_tensors, without_gradient
from .targets import choose_targets, layer_shape


class PeftAdapter(Adapter):
    """One of peft's adapters inside a module."""

    def __init__(
        self,
        module: nn.Module,
        config: AdapterConfig,
        seed: int,
        weights: FrozenWeights,
        device: torch.device | None = None,
    ) -> None:
        """Inject a fresh adapter whose update is zero; start values come from the seed."""
        self.config = config
        targets = choose_targets(module, config.target_modules, config.exclude_modules)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of block sizes that it adjusts; see _rotate_outputs
            torch.manual_seed(derive_seed(seed, "init"))
            with _readable_weights([module.get_submodule(name) for name in targets]):
                peft.inject_adapter_in_model(peft_config(config, targets), module, "default")
            modules = dict(module.named_modules())
            self.layers: dict[str, BaseTunerLayer] = {name: modules[name] for name in targets}
            for index, (name, layer) in enumerate(self.layers.items()):
                assert isinstance(layer, BaseTunerLayer), f"peft made {type(layer).__name__} of {name}"
                if config.kind == "oft":
                    _rotate_outputs(layer, layer_shape(name, config).rank, config)
                if config.kind in ("loha", "lokr") and config.rank_dropout:
                    _drop_outputs(layer, config.rank_dropout)
                layer.base_layer = FrozenLinear(layer.base_layer, weights, device)
                _move_parameters(layer, device)
                if config.kind == "dora":
                    _set_magnitude(layer)
                if config.dropout or config.rank_dropout:
                    layer.forward = self._seeded(layer.forward, layer, index)
        self._seed_and_step = (seed, 0)
        self.disable_dropout()

    def _seeded(self, forward: Callable[..., Tensor], layer: nn.Module, index: int) -> Callable[..., Tensor]:
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not layer.training:
                return forward(x, *args, **kwargs)
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                torch.manual_seed(
                    derive_seed(self._seed_and_step[0], "dropout", self._seed_and_step[1], index)
                )
                return forward(x, *args, **kwargs)

        return call

    @property
    def weights_loaded(self) -> bool:
        return all(layer.base_layer.is_loaded for layer in self.layers.values())

    def set_step(self, seed: int, micro_step: int) -> None:
        self._seed_and_step = (seed, micro_step)
        self._set_training(True)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        forwards = [layer.__dict__.get("forward") for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.__dict__["forward"] = layer.base_layer.forward
        try:
            yield
        finally:
            for layer, forward in zip(self.layers.values(), forwards, strict=True):
                del layer.__dict__["forward"]
                if forward is not None:
                    layer.__dict__["forward"] = forward

    def reversed(self) -> AbstractContextManager[None]:
        raise NotImplementedError("sliders are of the kind lora, see trainer.loop.checks")

    def disable_dropout(self) -> None:
        self._set_training(False)

    def _set_training(self, training: bool) -> None:
        for layer in self.layers.values():
            for module in layer.modules():
                module.training = training

    def parameters(self) -> list[nn.Parameter]:
        return [p for layer in self.layers.values() for p in _adapter_parameters(layer).values()]

    def output_matrices(self) -> list[nn.Parameter]:
        if self.config.kind != "dora":
            return []
        return [layer.lora_B["default"].weight for layer in self.layers.values()]

    def layers_without_gradient(self) -> list[str]:
        return without_gradient({n: [*_adapter_parameters(x).values()] for n, x in self.layers.items()})

    def limit_norms(self) -> None:
        """max_weight_norm is for the plain LoRA."""

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": parameter
            for name, layer in self.layers.items()
            for key, parameter in _adapter_parameters(layer).items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """peft's names without the adapter's; for DoRA also "<layer>.base_ratio" (out,), the length of the frozen rows
        over that of the updated ones, which the file needs."""
        state = {k: t.detach().to("cpu", torch.float32, copy=True) for k, t in self._tensors().items()}
        if self.config.kind == "dora":
            state |= {f"{name}.base_ratio": _base_ratio(layer) for name, layer in self.layers.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        load_tensors(self._tensors(), state)


@contextmanager
def _readable_weights(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, layers whose weights peft cannot compute with (quantised, packed) have zeros that take no memory: DoRA
    reads them for its start, which `_set_magnitude` does for the true weights."""
    originals = []
    for layer in layers:
        weight: Any = layer._parameters["weight"]
        shape: tuple[Any, Any] = (layer.out_features, layer.in_features)
        plain = type(weight) is nn.Parameter and weight.is_floating_point() and weight.dtype.itemsize > 1
        if not plain or tuple(weight.shape) != shape:
            zeros = torch.zeros(1, device=weight.device).expand(shape)
            originals.append((layer, weight))
            layer._parameters["weight"] = nn.Parameter(zeros, requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in originals:
            layer._parameters["weight"] = weight


@torch.no_grad()
def _set_magnitude(layer: Any) -> None:
    """DoRA's magnitude (out,) at the start: the length of each row of the weight that the layer computes with, which
    may be dequantised or carry patches (Liu et al. 2024, arXiv 2402.09353, eq. 5)."""
    magnitude = layer.lora_magnitude_vector["default"].weight
    magnitude.copy_(layer.base_layer.weight.float().norm(dim=1))


def _adapter_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by peft's names without the adapter's ("hada_w1_a", "lora_A.weight")."""
    return {
        name.replace(".default", ""): parameter
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.")
    }


def _move_parameters(layer: nn.Module, device: torch.device | None) -> None:
    """The adapter's, to a device in fp32."""
    for name, owner in layer.named_modules():
        if name.partition(".")[0] != "base_layer":
            for key, parameter in owner._parameters.items():
                if parameter is not None:
                    moved = parameter.detach().to(device, torch.float32)
                    owner._parameters[key] = nn.Parameter(moved, parameter.requires_grad)


def _rotate_outputs(layer: Any, block: int, config: AdapterConfig) -> None:
    """Make an OFT layer of peft rotate its outputs, in blocks of `block` values."""
    layer.in_features = layer.out_features
    layer.update_layer(
        "default",
        0,
        config=peft.OFTConfig(
            r=0, oft_block_size=block, use_cayley_neumann=False, module_dropout=config.dropout
        ),
    )
    rotation = layer.oft_R["default"]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y, bias = layer.base_layer(x), layer.base_layer.bias
        if bias is None:
            return rotation(y)
        return rotation(y - bias) + bias

    layer.forward = forward


def _drop_outputs(layer: Any, rate: float) -> None:
    """peft's rank_dropout of these kinds multiplies in place, which autograd refuses (peft 0.21): out of place here."""
    original = layer.get_delta_weight

    def get_delta_weight(adapter: str, **options: Any) -> Tensor:
        weight = original(adapter)
        if not layer.training:
            return weight
        mask = (torch.rand(len(weight), 1) >= rate).to(weight)
        return weight * mask / (1 - rate)

    layer.get_delta_weight = get_delta_weight


@torch.no_grad()
def _base_ratio(layer: Any) -> Tensor:
    """|W| / |W + s B A| by row, (out,) on the CPU."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.base_layer.weight.float()
    updated = torch.addmm(weight, b, a, alpha=layer.scaling["default"])
    return (weight.norm(dim=1) / updated.norm(dim=1)).cpu()
