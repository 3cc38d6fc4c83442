"""What the host's dynamic loading does to a trained model, simulated on a CPU with its real classes; prints JSON.

Run by test_lent_weights.py in the host's folder: `python lent_weights.py MODEL`. Host 0.33 lends the weight of a layer
until the layer has computed, on a CPU never: here every layer that casts gets its weight in one of two buffers that are
overwritten in turn, as two offload streams do.
"""

from __future__ import annotations

import functools
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

MODEL = Path(sys.argv[1])
inprocess.start()

import comfy.ops
import numpy as np
import torch
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig, MemoryConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.errors import KilnError  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.placement import Placement  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.shared_clone import SharedClone, original_of  # type: ignore[import-not-found]
from one_step import LATENTS, error, load, take_step
from torch import Tensor, nn

ADAPTER = AdapterConfig(rank=4, alpha=4.0, dropout=0.0)


class Lender:
    """comfy.ops.cast_bias_weight that lends memory; knows what it has lent."""

    def __init__(self) -> None:
        self._buffers = [np.zeros(1 << 25, np.uint8) for _ in range(2)]
        self._turn = 0
        self.count = 0
        self.sources: list[nn.Module] = []

    def cast(
        self, layer: Any, like: Any = None, dtype: Any = None, offloadable: bool = False, **_: Any
    ) -> Any:
        self._turn ^= 1
        self.count += 1
        self.sources.append(layer)
        start, lent = 0, []
        for tensor in (layer.weight, layer.bias):
            if tensor is None:
                lent.append(None)
                continue
            raw = tensor.detach().to(dtype or like.dtype).contiguous()
            memory = self._buffers[self._turn][start : start + raw.nbytes]
            memory[:] = raw.view(-1).view(torch.uint8).numpy()
            lent.append(torch.from_numpy(memory).view(raw.dtype).view(raw.shape))
            start += raw.nbytes
        return (*lent, (None, "device", None)) if offloadable else tuple(lent)

    def is_lent(self, tensor: Tensor) -> bool:
        place = tensor.untyped_storage().data_ptr()
        return any(b.ctypes.data <= place < b.ctypes.data + b.nbytes for b in self._buffers)


@contextmanager
def lending(module: nn.Module) -> Iterator[Lender]:
    """Every layer of the module casts, and what it gets is lent."""
    lender, originals = Lender(), (comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight)
    comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight = lender.cast, lambda *_: None
    for layer in module.modules():
        if isinstance(layer, comfy.ops.CastWeightBiasOp):
            layer.comfy_cast_weights = True
    try:
        yield lender
    finally:
        comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight = originals


def step(level: str, lend: bool, targets: str = "") -> tuple[list[Tensor], int, int]:
    """Loss and gradients, how many weights were lent, and how many tensors that autograd saved lie in lent memory."""
    denoiser = HostDenoiser(load(MODEL), tuple(LATENTS.shape))
    placement = Placement(denoiser, MemoryConfig(level=level), ADAPTER, host_weights)
    with placement.session():
        adapter = make_adapter(denoiser.module, ADAPTER, 0, placement.weights, denoiser.device)
        if not lend:
            return take_step(denoiser, adapter), 0, 0
        with lending(denoiser.module) as lender:
            found: list[Tensor] = []

            def save(tensor: Tensor) -> Tensor:
                # What a layer saves inside its own backward, it uses there, before anything else is lent
                in_forward = torch._C._current_graph_task_id() == -1
                if in_forward and lender.is_lent(tensor):
                    found.append(tensor)
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
                return take_step(denoiser, adapter), lender.count, len(found)


def dynamic_notes() -> dict[str, Any]:
    """A layer as host 0.33's dynamic loader leaves it, and its clone."""
    network = nn.Sequential(comfy.ops.manual_cast.Linear(8, 8, dtype=torch.float32))
    layer: Any = network[0]
    layer.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
    layer.bias = nn.Parameter(torch.zeros(8), requires_grad=False)
    layer.weight._model_dtype = torch.float16
    layer._v, layer._pins, layer._pin_state, layer._prefetch = (
        (0, 0, 256),
        {},
        {"weights": ()},
        {"signature": None},
    )
    from lora_kiln.nodes.host.memory.frozen_weights import DYNAMIC_STATE

    clone = SharedClone(network, without=DYNAMIC_STATE)
    like, taken = torch.zeros(1, 8), []
    for _ in range(2):  # two sessions
        with clone.weights():
            inner: Any = clone.module[0]
            taken += sorted(DYNAMIC_STATE & set(inner.__dict__))
            with lending(nn.Sequential()) as lender, host_weights(inner, like):
                pass
            through_original = lender.sources == [layer] and original_of(inner) is layer
            inner._parameters["weight"] = nn.Parameter(torch.randn(8, 8), False)  # a streamed block's
            with lending(nn.Sequential()) as lender, host_weights(inner, like):
                pass
            own_when_bound = lender.sources == [inner]
    with clone.weights():
        original = comfy.ops.cast_bias_weight
        comfy.ops.cast_bias_weight = lambda *a, **k: (_ for _ in ()).throw(
            RuntimeError("CUDA error: out of memory")
        )
        try:
            with host_weights(clone.module[0], like):
                pass
        except RuntimeError:
            pass
        finally:
            comfy.ops.cast_bias_weight = original
    return {
        "taken over": taken,
        "through the original": through_original,
        "own when bound": own_when_bound,
        "note of a failed transfer": hasattr(layer, "_prefetch"),
    }


def patched_forward(make: Any) -> Any:
    """Layers of the model without a gradient when other nodes have replaced each cross attention's forward, or the
    refusal."""
    model = load(MODEL)
    patched = model.clone()
    for i, block in enumerate(model.model.diffusion_model.blocks):
        patched.add_object_patch(f"diffusion_model.blocks.{i}.cross_attn.forward", make(block.cross_attn))
    denoiser = HostDenoiser(patched, tuple(LATENTS.shape))
    placement = Placement(denoiser, MemoryConfig(level="resident"), ADAPTER, host_weights)
    try:
        with placement.session():
            adapter = make_adapter(denoiser.module, ADAPTER, 0, placement.weights, denoiser.device)
            take_step(denoiser, adapter)
            return adapter.layers_without_gradient()
    except KilnError as refused:
        return str(refused)


def as_method(own: Any) -> Any:
    return types.MethodType(type(own).forward, own)


def as_closure(own: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return type(own).forward(own, *args, **kwargs)

    return forward


def main() -> None:
    figures: dict[str, Any] = {"notes": dynamic_notes()}
    for level in ("resident", "checkpoint activations"):
        plain, _, _ = step(level, False)
        lent, count, saved = step(level, True)
        figures[level] = {"error": error(lent, plain), "lent": count, "saved": saved}
    figures["method"] = patched_forward(as_method)
    figures["closure"] = patched_forward(as_closure)
    figures["partial"] = patched_forward(lambda own: functools.partial(type(own).forward, own))
    print(json.dumps(figures))


main()
