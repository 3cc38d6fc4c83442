"""The weights of the trained layers in fewer bits, dequantised whenever a layer asks for its weight.

    fp8   float8_e4m3fn with one fp32 scale per row: q = round(w / s), s = max |w| of the row / 448, w' = q s
    nf4   4 bits a value on the quantiles of a normal distribution, one scale per 64 values, the scales in 8 bits
          (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, section 3), by the optional package bitsandbytes

Both round to nearest, so a run is the same every time. Only layers under an adapter are held so: they ask for their
weight through FrozenWeights and never read it themselves. The relative error of a normally distributed weight matrix is
about 2.6 % in fp8 and 9 % in nf4; the LoRA learns on the rounded weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..adapter.frozen_weights import FrozenWeights
from ..errors import KilnError
from .ledger import size_of

FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0
NF4_BLOCK = 64  # values that share a scale
BYTES_PER_VALUE = {"fp8": 1.0, "nf4": 0.5 + 1 / NF4_BLOCK}
"""By base_precision: bytes held for each value of a weight, nf4 with its scales."""

_HELD = "kiln_quantised"  # attribute of a layer whose weight is held so


def quantised_bytes(weight: Tensor, precision: str) -> int:
    """Bytes that a weight takes when it is held in `precision`; its present size where that is no more."""
    if precision not in BYTES_PER_VALUE:
        return size_of(weight)
    return min(size_of(weight), int(weight.numel() * BYTES_PER_VALUE[precision]))


def scale_bytes(weight: Tensor, precision: str) -> int:
    """Bytes that stay on the device when the values of a weight are streamed; 0 where it is not quantised."""
    if quantised_bytes(weight, precision) >= size_of(weight):
        return 0
    return 4 * len(weight) if precision == "fp8" else weight.numel() // NF4_BLOCK


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> float8_e4m3fn of the same shape, fp32 scale (out, 1). A row of zeros stays one."""
    scale = weight.abs().amax(dim=1, keepdim=True).float().div_(FP8_LARGEST).clamp_(min=1e-12)
    return (weight / scale).clamp_(-FP8_LARGEST, FP8_LARGEST).to(FP8), scale


def from_fp8(weight: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """The inverse, on the device and in the type of `like`."""
    return weight.to(like.device).to(like.dtype).mul_(scale.to(like))


class _Format(Protocol):
    """One way to hold a weight: the values as one tensor, which may be streamed, and small scales beside them."""

    def take_values(self) -> Tensor:
        """The values, once: they are not kept here, where they would stay on the device."""
        ...

    def dequantise(self, values: Tensor, like: Tensor) -> Tensor: ...

    def to(self, device: torch.device) -> None:
        """Move the scales."""
        ...


class _Fp8:
    def __init__(self, weight: Tensor) -> None:
        self._values, self._scale = to_fp8(weight)

    def take_values(self) -> Tensor:
        values: Tensor = self.__dict__.pop("_values")
        return values

    def dequantise(self, values: Tensor, like: Tensor) -> Tensor:
        return from_fp8(values, self._scale, like)

    def to(self, device: torch.device) -> None:
        self._scale = self._scale.to(device)


class _Nf4:
    def __init__(self, weight: Tensor) -> None:
        self._library = _bitsandbytes()
        self._values, self._scales = self._library.quantize_4bit(
            weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=True
        )

    def take_values(self) -> Tensor:
        values: Tensor = self.__dict__.pop("_values")
        return values

    def dequantise(self, values: Tensor, like: Tensor) -> Tensor:
        weight: Tensor = self._library.dequantize_4bit(values.to(like.device), self._scales)
        return weight.to(like.dtype)

    def to(self, device: torch.device) -> None:
        self._scales.to(device)


_FORMATS: dict[str, Any] = {"fp8": _Fp8, "nf4": _Nf4}


@dataclass
class _Held:
    values: Tensor  # quantised; in CPU memory between sessions
    bias: Tensor | None  # (out,), as the layer's FrozenWeights gave it
    format: _Format


class QuantisedBase:
    """One run's quantised weights. They are made when a layer is first held and kept until the run ends.

    Attributes:
        weights: FrozenWeights of all layers, quantised or not.
    """

    def __init__(self, precision: str, weights: FrozenWeights) -> None:
        """precision: "fp8" or "nf4". weights: of layers that are not quantised.

        Raises:
            KilnError: nf4, and bitsandbytes is not there.
        """
        if precision == "nf4":
            _bitsandbytes()
        self._precision, self._unquantised = precision, weights

    @torch.no_grad()
    def hold(self, layer: nn.Module, like: Tensor, device: torch.device) -> bool:
        """Replace the weight of a layer of the shared clone by its quantised form on `device`; False, and nothing is
        done, where that would not be smaller.

        What FrozenWeights does to the weight (patches of other nodes, dequantising a file's format) is in it from then
        on, and in the bias.

        Args:
            like: an empty tensor on the device and in the type in which the layer computes.
        """
        weight = layer._parameters["weight"]
        held: _Held | None = layer.__dict__.get(_HELD)
        if held is None:
            assert weight is not None
            if quantised_bytes(weight, self._precision) >= size_of(weight):
                return False
            with self._unquantised(layer, like) as (whole, bias):
                form: _Format = _FORMATS[self._precision](whole)
                held = _Held(form.take_values(), None if bias is None else bias.clone(), form)
            layer.__dict__[_HELD] = held
        held.values = held.values.to(device)
        held.format.to(like.device)
        layer._parameters["weight"] = nn.Parameter(held.values, requires_grad=False)
        if held.bias is not None:
            held.bias = held.bias.to(device)
            layer._parameters["bias"] = nn.Parameter(held.bias, requires_grad=False)
        return True

    def release(self, layer: nn.Module) -> None:
        """Leave the device: the quantised form goes to CPU memory until the layer is held again."""
        held: _Held = layer.__dict__[_HELD]
        cpu = torch.device("cpu")
        held.values = held.values.to(cpu)
        held.bias = None if held.bias is None else held.bias.to(cpu)
        held.format.to(cpu)

    @contextmanager
    def weights(self, layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        held: _Held | None = layer.__dict__.get(_HELD)
        if held is None:
            with self._unquantised(layer, like) as pair:
                yield pair
            return
        values, bias = layer._parameters["weight"], layer._parameters.get("bias")
        assert values is not None
        yield held.format.dequantise(values, like), None if bias is None else bias.to(like)


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes.functional")
    except Exception as error:  # also a package that is there and does not load
        raise KilnError(
            f"base_precision nf4 needs the Python package bitsandbytes ({error}); install it with 'pip install "
            "bitsandbytes' into ComfyUI's Python, or choose fp8."
        ) from error
