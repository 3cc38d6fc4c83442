"""A ComfyUI MODEL as the engine's Denoiser.

The network is called the way BaseModel.apply_model calls it, without the step that turns its output into a clean
image: training compares the raw output. It is called on a shared clone of the module
tree (see trainer/memory/shared_clone.py), so other nodes never see an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.model_base import ModelType
from torch import Tensor, nn

from ....trainer.config import Prediction
from ....trainer.denoiser import Conditioning, Denoiser
from ....trainer.errors import KilnError
from ....trainer.events import Stopped
from ..memory.loading import ModelLoader
from .differentiable_ops import attention, lean_norms, lean_rope, training_mode

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
        self._loader = ModelLoader(self._patcher, batch_shape)
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
        return self._loader.module

    @contextmanager
    def session(self, whole: bool = True, file: Path | None = None) -> Iterator[str]:
        """See trainer.denoiser.Denoiser.session."""
        with training_mode(), lean_rope(), self._loader.session(whole, file) as note:
            if self.device.type == "cpu":
                lean_norms(self.module)
            yield note

    def keeps_to_itself(self, owner: nn.Module, name: str) -> bool:
        return self._loader.keeps_to_itself(owner, name)

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
