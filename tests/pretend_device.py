"""An accelerator that exists in Python only: shapes, devices and memory are real, values are not.

torch can register a device whose operators are written in Python. Inside `FakeTensorMode` a network of any size runs
forward and backward on it in seconds: no values are computed, an operation between two devices raises as on CUDA, and
every allocation is seen. `Allocations` counts them as torch's allocators do:

    device    rounded up to 512 bytes
    pinned    rounded up to a power of two

Not simulated: fragmentation, workspaces of matrix multiplications and convolutions, the CUDA context, other programs.
Attention and RMSNorm are one operation, as they are on CUDA; flash attention's fp32 accumulator is counted.
"""

from __future__ import annotations

import importlib
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

aten = torch.ops.aten
NAME = "pretend"
ALIGNMENT = 512  # bytes: what CUDA's allocator rounds up to
PINNED = "pinned"  # CPU memory that the system may not move


_present = False  # outside pretending() the process has no accelerator, whatever else is tested in it


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return _present


class _Backend(_DummyBackendModule):
    def is_available(self) -> bool:
        return _present

    def device_count(self) -> int:
        return int(_present)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def empty_cache(self) -> None:
        pass


def pretend_device() -> torch.device:
    """The device; there is one a process."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend(), hook=_Hook())
    return torch.device(NAME, 0)


class Allocations(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, for as long as it lives.

    Attributes:
        live: bytes by kind of memory: the name of a device, or PINNED.
        peak: the most that each has been.
        parts: by kind of memory, bytes by what they were made for, now.
        parts_at_peak: the same at the peak.
        has_float64: whether the device has; Apple's has none.
        total_made: number of storages that were ever made.
        registered, registered_peak: bytes of CPU memory that were pinned after they had been made.
        pinned_at_the_end: bytes that were pinned still, each time that pinned memory was given back to the system.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, int] = defaultdict(int)
        self.peak: dict[str, int] = defaultdict(int)
        self.parts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.parts_at_peak: dict[str, dict[str, int]] = {}
        self.total_made = self.registered = self.registered_peak = 0
        self.has_float64 = True
        self.pinned_at_the_end: list[int] = []
        self.fake: Any = None  # the mode of tensors without values
        self._part = ["other"]
        self._seen: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._pinned: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._kind: str | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is made inside is made for this."""
        self._part.append(name)
        try:
            yield
        finally:
            self._part.pop()

    @contextmanager
    def pinning(self) -> Iterator[None]:
        """CPU memory that is made inside is pinned."""
        before, self._kind = self._kind, PINNED
        try:
            yield
        finally:
            self._kind = before

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage() in self._pinned

    def register(self, tensor: Tensor) -> None:
        """Memory that is there is pinned where it is, without rounding."""
        storage = _memory(tensor)
        if storage not in self._pinned:
            self._pinned[storage] = True
            self.registered += storage.nbytes()
            self.registered_peak = max(self.registered_peak, self.registered)

    def unregister(self, tensor: Tensor) -> bool:
        storage = _memory(tensor)
        if self._pinned.pop(storage, False):
            self.registered -= storage.nbytes()
            return True
        return False

    def reset_peak(self) -> None:
        """Peaks are from now on."""
        self.peak = defaultdict(int, self.live)
        self.parts_at_peak = {kind: dict(parts) for kind, parts in self.parts.items()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default:
            return _some_value(args[0].dtype)
        if func is aten.equal.default:
            return True
        if func is aten._to_copy.default and type(args[0]) is Tensor:
            # A tensor with values, which torch would move with them
            args = (self.fake.from_tensor(args[0]), *args[1:])
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                if value.dtype == torch.float64 and value.device.type == NAME and not self.has_float64:
                    raise TypeError("Cannot convert a tensor to float64 on this device")
                if isinstance(value, FakeTensor):
                    value.constant = (
                        None  # values that torch remembers it would compute with, on this device too
                    )
                self._count(value)
        if func in _WORKSPACES:
            with self.part("workspace"):
                size = _WORKSPACES[func](args)
                self._take(NAME, size)
                self._give(NAME, "workspace", size)
        return output

    def _count(self, tensor: Tensor) -> None:
        if hasattr(tensor, "__tensor_flatten__"):
            return  # a quantised weight has no memory itself; the tensors that it is made of are counted
        storage = tensor.untyped_storage()
        if storage in self._seen or tensor.device.type == "meta":
            return
        self._seen[storage] = True
        kind, part = tensor.device.type, self._part[-1]
        if kind == "cpu" and self._kind == PINNED:
            kind = PINNED
            self._pinned[storage] = True
        size = rounded(kind, storage.nbytes())
        self.total_made += 1
        self._take(kind, size)
        weakref.finalize(storage, self._give, kind, part, size)

    def _take(self, kind: str, size: int) -> None:
        part = self._part[-1]
        self.live[kind] += size
        self.parts[kind][part] += size
        if self.live[kind] > self.peak[kind]:
            self.peak[kind] = self.live[kind]
            self.parts_at_peak[kind] = dict(self.parts[kind])

    def _give(self, kind: str, part: str, size: int) -> None:
        self.live[kind] -= size
        self.parts[kind][part] -= size


def _memory(tensor: Tensor) -> Any:
    """The storage that a host pins; of a quantised weight that of its values, which comes first."""
    while hasattr(tensor, "__tensor_flatten__"):
        tensor = getattr(tensor, tensor.__tensor_flatten__()[0][0])
    return tensor.untyped_storage()


def rounded(kind: str, size: int) -> int:
    """Bytes that torch's allocator takes for that many."""
    if kind == PINNED:
        return 1 << max(0, size - 1).bit_length() if size else 0
    return -(-size // ALIGNMENT) * ALIGNMENT if kind == NAME else size


def _some_value(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 0


# Operations that are one kernel on CUDA


_sdpa, _rms = F.scaled_dot_product_attention, F.rms_norm


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """torch's scaled_dot_product_attention as CUDA has it, one kernel; on a device without one torch takes it apart."""
    if q.device.type != NAME:
        return _sdpa(q, k, v, attn_mask, *args, **kwargs)
    if attn_mask is None and q.dtype in (torch.float16, torch.bfloat16):
        answer: Tensor = aten._scaled_dot_product_flash_attention(q, k, v)[0]
    else:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = attn_mask.to(q.dtype)  # as torch does before the kernel
        answer = aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, q.requires_grad)[0]
    return answer


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        y = torch.empty_like(x) if weight is None else torch.empty_like(x).copy_(x[..., :1] * weight[:1])
        ctx.save_for_backward(x, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32), weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        assert len(ctx.saved_tensors) == 3
        return grads[0].clone(), None


def rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """torch's rms_norm with a frozen weight, in the same way."""
    if x.device.type != NAME:
        return _rms(x, shape, weight, eps)
    answer: Tensor = _RmsNorm.apply(x, weight)
    return answer


# Beside its outputs, bytes that a kernel takes while it runs
_WORKSPACES = {
    # fp32 accumulator of the gradient of q, in torch's flash_api.cpp
    aten._scaled_dot_product_flash_attention_backward.default: lambda args: 4 * args[1].numel(),
}


# Entering it


@contextmanager
def pretending(memory: Any) -> Iterator[Allocations]:
    """Inside, tensors have no values and the pretend device can be used; yields the count of what is allocated.

    Args:
        memory: the package trainer.memory, as that process calls it.
    """
    streams, plain = (importlib.import_module(f"{memory.__name__}.{name}") for name in ("streams", "plain"))
    copy_on_write, ring, quantised = (
        importlib.import_module(f"{memory.__name__}.{name}")
        for name in ("copy_on_write", "ring", "quantised_base")
    )
    device, counted, generator = pretend_device(), Allocations(), torch.Generator
    with ExitStack() as entered:
        entered.enter_context(mock.patch.dict(globals(), {"_present": True}))
        entered.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        entered.enter_context(mock.patch.dict(streams.KINDS, {NAME: _streams_class(streams, counted)}))
        entered.enter_context(mock.patch.object(plain, "KINDS", {*plain.KINDS, FakeTensor}))
        # Tensors without values have no addresses
        entered.enter_context(
            mock.patch.object(copy_on_write, "_storage", lambda t: t.untyped_storage()._cdata)
        )
        entered.enter_context(mock.patch.object(Tensor, "numpy", with_values(Tensor.numpy)))
        entered.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
        entered.enter_context(mock.patch.object(F, "rms_norm", rms_norm))
        entered.enter_context(mock.patch.object(torch.optim, "AdamW", _FusedAdamW))
        entered.enter_context(mock.patch.object(ring, "_CopyThread", _NoThread))
        entered.enter_context(mock.patch.object(quantised, "_bitsandbytes", lambda: PretendBitsandbytes))
        entered.enter_context(torch.autograd.set_multithreading_enabled(False))
        counted.fake = entered.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        entered.enter_context(mock.patch.object(torch, "Generator", lambda device="cpu": generator()))
        entered.enter_context(counted)
        torch.empty(1, device=device)
        yield counted


class _FusedAdamW(torch.optim.AdamW):
    """As CUDA has it: one kernel, which takes no memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "fused": True})


def with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; the tensors that it makes have values, and those that have values keep them."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


def without_pretending(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function on real tensors: zeros for those that have no values. For reading and writing files."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*tree_map(real, args), **tree_map(real, kwargs))

    def real(value: Any) -> Any:
        return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, FakeTensor) else value

    return call


class PretendBitsandbytes:
    """What bitsandbytes.functional does in nf4 with 64 values to a scale and the scales in 8 bits, without values."""

    class State:
        def __init__(self, weight: Tensor) -> None:
            scales = -(-weight.numel() // 64)
            self.shape, self.dtype = weight.shape, weight.dtype
            self._scales = weight.new_empty(scales, dtype=torch.uint8)
            others = (16, 256, -(-scales // 256), 1)  # both codes, the scales' own scales, their mean
            self._others = [weight.new_empty(size, dtype=torch.float32) for size in others]

        def to(self, device: torch.device) -> None:
            self._scales = self._scales.to(device)
            self._others = [tensor.to(device) for tensor in self._others]

        def scales(self) -> Tensor:
            return self._scales.float()

    @classmethod
    def quantize_4bit(cls, weight: Tensor, **options: Any) -> tuple[Tensor, State]:
        return weight.new_empty((-(-weight.numel() // 2), 1), dtype=torch.uint8), cls.State(weight)

    @staticmethod
    def dequantize_4bit(values: Tensor, state: State) -> Tensor:
        scales = state.scales()  # in fp32 while the kernel runs
        assert values.device == scales.device
        return values.new_empty(state.shape, dtype=state.dtype)


class _NoThread:
    """Copies on the thread that asks: there is one count of memory, and it belongs to one thread."""

    def submit(self, work: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()
        future.set_result(work())
        return future

    def close(self) -> None:
        pass


def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which cannot put a tensor of another device into a parameter that has no values."""
    for module in self.modules() if recurse else [self]:
        for key, parameter in module._parameters.items():
            if parameter is not None and (moved := function(parameter.data)) is not parameter.data:
                with torch.inference_mode(parameter.is_inference()):
                    module._parameters[key] = nn.Parameter(moved, parameter.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = function(buffer)
    return self


def _streams_class(streams: Any, counted: Allocations) -> Any:
    class PretendStreams(streams.Streams):  # type: ignore[misc, name-defined]
        """Copies at once."""

        def make(self) -> None:
            return None

        def current(self) -> None:
            return None

        def copy(self, into: Tensor, source: Tensor, stream: None) -> None:
            into.copy_(source)

        def record(self, stream: None) -> None:
            return None

        def wait(self, stream: None, event: None) -> None:
            pass

        def wait_on_cpu(self, event: None) -> None:
            pass

        def pinned(self, like: Tensor) -> Tensor:
            with counted.pinning():
                return torch.empty_like(like, device="cpu")

        def free_pinned(self) -> None:
            counted.pinned_at_the_end.append(counted.live[PINNED])

        def is_direct(self, tensor: Tensor) -> bool:
            return tensor.device.type != "cpu" or counted.is_pinned(tensor)

    return PretendStreams
