"""A ComfyUI MODEL as the engine's Denoiser.

The network is called the way BaseModel.apply_model calls it, without the step that turns its output into a clean
image: training compares the raw output. It is called on a twin of the module tree (see trainer/twin.py), so other
nodes never see an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.model_base import ModelType
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...trainer.adapter.inject import is_linear
from ...trainer.config import Prediction
from ...trainer.denoiser import Conditioning, Denoiser
from ...trainer.errors import KilnError
from ...trainer.events import Stopped
from ...trainer.memory.mapped import is_mapped, release_copies
from ...trainer.twin import Twin
from .training_ops import attention, lean_norms, lean_rope

NO_ROOM = 1 << 60  # bytes, more than any device has

PREDICTIONS: dict[ModelType, Prediction] = {
    ModelType.FLOW: "flow",
    ModelType.FLUX: "flow",
    ModelType.EPS: "epsilon",
    ModelType.V_PREDICTION: "v",
}


class HostDenoiser(Denoiser):
    """Trains the very weights that the graph's MODEL holds."""

    def __init__(self, model: Any, batch_shape: tuple[int, ...]) -> None:
        """model: a MODEL. batch_shape: the largest batch of latents, to ask the host for room.

        Raises:
            KilnError: the model's kind of prediction cannot be trained.
        """
        base = model.model
        if base.model_type not in PREDICTIONS:
            kinds = ", ".join(k.name for k in PREDICTIONS)
            raise KilnError(
                f"This model predicts {base.model_type.name}; models that can be trained: {kinds}."
            )
        self._patcher = model.clone()
        self._base = base
        self._batch_shape = batch_shape
        self._twin: Twin | None = None
        self.prediction = PREDICTIONS[base.model_type]
        sampling = model.get_model_object("model_sampling")
        self.timestep_scale = (
            float(getattr(sampling, "multiplier", 1.0)) if self.prediction == "flow" else 1.0
        )
        self.alphas_cumprod = None
        if self.prediction != "flow":
            self.alphas_cumprod = 1.0 / (sampling.sigmas.detach().float().clone() ** 2 + 1.0)
        self.latent_channels = base.latent_format.latent_channels
        self.device = torch.device(self._patcher.load_device)
        self.dtype = self._choose_dtype()

    def _choose_dtype(self) -> torch.dtype:
        """The precision of the host's forward; fp16 becomes bf16 where the card can, since fp16 gradients underflow."""
        dtype = self._patcher.get_model_object("manual_cast_dtype") or self._base.get_dtype()
        if dtype == torch.float16 and comfy.model_management.should_use_bf16(self.device):
            dtype = torch.bfloat16
            self._patcher.set_model_compute_dtype(dtype)
        return dtype

    @property
    def module(self) -> nn.Module:
        assert self._twin is not None, "there is a module only inside session()"
        return self._twin.module

    @contextmanager
    def session(self, whole: bool = True, file: Path | None = None) -> Iterator[str]:
        """Load the model as the host does for sampling, with room for activations, and lend its weights to the twin."""
        room = 3 * self._patcher.memory_required(list(self._batch_shape))
        if not whole and self.device.type != "cpu":
            # Asked for more room than there is, the host keeps the weights of its layers on the offload device, with
            # the patches of other nodes as functions that host_weights applies. It leaves a model alone that is on the
            # device already, so everything goes off it first.
            room = NO_ROOM
            comfy.model_management.free_memory(NO_ROOM, self.device)
        if file is not None:
            # The host pins what it leaves in CPU memory, which would hold the file's pages there
            self._patcher.pin_weight_to_device = lambda key: None
        comfy.model_management.load_models_gpu([self._patcher], memory_required=room)
        note = "" if file is None else self._release_copies(file)
        if self._twin is None:
            self._twin = Twin(self._base.diffusion_model)
        with _training_mode(), lean_rope(), self._twin.weights():
            as_linear_layers(self._twin.module)
            if self.device.type == "cpu":
                lean_norms(self._twin.module)
            yield note

    def _release_copies(self, file: Path) -> str:
        """After loading, when no other node's patches are in the weights; see Denoiser.session. Host 0.33 has no copies
        on a GPU: with dynamic loading its weights are mapped from the file already."""
        if getattr(self._patcher, "is_dynamic", bool)():
            return ""
        return release_copies(self._base.diffusion_model, file).sentence()

    def keeps_to_itself(self, owner: nn.Module, name: str) -> bool:
        """Weights that host 0.33 streams itself ("aimdo") with patches on top: only its own way of bringing them in
        applies those."""
        return getattr(owner, f"{name}_lowvram_function", None) is not None

    def prepare_latents(self, latents: Tensor) -> Tensor:
        return self._base.process_latent_in(latents)

    def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Raises Stopped when the host's interrupt arrives inside: every host layer looks for it."""
        try:
            return self._forward(noisy, timestep, conditioning)
        except comfy.model_management.InterruptProcessingException as interrupt:
            raise Stopped from interrupt

    def _forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        with torch.no_grad():
            conds = self._base.extra_conds(
                noise=noisy, latent_image=noisy, device=self.device, **conditioning
            )
            values = {
                name: cond.process_cond(batch_size=len(noisy), device=self.device, area=None).cond
                for name, cond in conds.items()
            }
        values = {name: self._cast(value) for name, value in values.items()}
        context = values.pop("c_crossattn", None)
        concat = values.pop("c_concat", None)
        x = noisy.to(self.dtype) if concat is None else torch.cat([noisy.to(self.dtype), concat], dim=1)
        options = {
            **self._patcher.model_options.get("transformer_options", {}),
            "sigmas": timestep,
            "optimized_attention_override": attention,
        }
        timestep = self._base.process_timestep(timestep.float(), x=noisy, **values)
        answer = self.module(
            x, timestep, context=context, control=None, transformer_options=options, **values
        )
        return answer.float()

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
        return value


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


def host_weights(layer: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
    """FrozenWeights of the host's linear layers: resident, offloaded, of another type, with patches to apply, fp8,
    scaled fp8 or quantised."""
    own_cast = getattr(layer, "cast_bias_weight", None)
    if own_cast is not None:  # ComfyUI-GGUF's layers dequantise and patch their weight themselves
        return nullcontext(own_cast(like))
    changed = layer.comfy_cast_weights or layer.weight_function or layer.bias_function
    weight = layer.weight
    if not changed and weight.dtype == like.dtype and type(weight) is nn.Parameter:
        return nullcontext((weight, layer.bias))  # type: ignore[arg-type]
    return _brought_in(layer, like)


@contextmanager
def _brought_in(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """By the host's own routine; handed back as soon as they have been used."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        scale = getattr(layer, "scale_weight", None)  # scaled fp8 on host 0.3.75; 0.33 dequantises by itself
        inputs = getattr(layer, "pre_quant_scale", None)  # host 0.33: what the inputs are to be multiplied by
        for factor in (scale, inputs):
            weight = weight if factor is None else weight * factor.to(weight)
        yield (weight.dequantize() if isinstance(weight, QuantizedTensor) else weight), bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def as_linear_layers(module: nn.Module) -> None:
    """Make the quantised linear layers of a twin known as such: the host's (comfy.ops.mixed_precision_ops) are no
    nn.Linear, which peft asks for. Their behaviour stays theirs."""
    classes: dict[type, type] = {}
    for layer in module.modules():
        kind = type(layer)
        if is_linear(layer) and not isinstance(layer, nn.Linear):
            if kind not in classes:
                classes[kind] = type(kind.__name__, (kind, nn.Linear), {})
            layer.__class__ = classes[kind]


@contextmanager
def _training_mode() -> Iterator[None]:
    """Host 0.33 takes kernels without a backward (fused RoPE among them) unless this flag is set; 0.3.75 has none."""
    management = comfy.model_management
    if not hasattr(management, "in_training"):
        yield
        return
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = False
