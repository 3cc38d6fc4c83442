"""A ComfyUI MODEL as the engine's Denoiser.

The network is called as the host calls it when it samples: its extra_conds make the network's arguments of each item's
conditioning, comfy/conds.py says which items can be one batch, and its _apply_model makes the call. Left out is only
what turns the network's output into a clean image: training compares the raw output. It is called on a shared clone of
the module tree (see trainer/memory/shared_clone.py), so other nodes never see an adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import WAN21, BaseModel, WAN21_HuMo
from comfy.model_base import HunyuanVideo as HunyuanVideoModel
from torch import Tensor, nn

from ....trainer.conditioning import ItemConditioning, map_tensors, tensors_in
from ....trainer.denoiser import Conditioning, ConditioningBatch, Denoiser
from ....trainer.events import Stopped
from ....trainer.memory.copy_on_write import WriteCheck
from ..memory.loading import ModelLoader
from .differentiable_ops import attention, lean_norms, lean_rope, training_mode
from .fused_kernels import differentiate_kernels
from .prediction import parameterisation, sigma_of

ModelConds = dict[str, Any]  # name of a network's argument -> one of the classes of comfy.conds


class HostDenoiser(Denoiser):
    """Trains the very weights that the graph's MODEL holds."""

    def __init__(self, model: Any, batch_shape: tuple[int, ...], beside: Sequence[Any] = ()) -> None:
        """
        Args:
            model: a MODEL.
            batch_shape: the largest batch of latents, to ask the host for room.
            beside: patchers of what is loaded with it: a text encoder that is trained too.

        Raises:
            KilnError: the model's kind of prediction cannot be trained.
        """
        base = model.model
        self._parameters = parameterisation(model.get_model_object("model_sampling"))
        self._patcher = model.clone()
        self._base = base
        self._loader = ModelLoader(self._patcher, batch_shape, beside)
        self._writes = WriteCheck()
        kinds = [c for c in type(base).__mro__ if issubclass(c, BaseModel)]
        self.family = tuple(c.__name__ for c in (type(base.model_config), *kinds))
        self.prediction = self._parameters.prediction
        self.timestep_scale = self._parameters.timestep_scale
        self.noise_scale = self._parameters.noise_scale
        self.alphas_cumprod = self._parameters.alphas_cumprod
        # Wan 2.2 5B, LTX-Video and Cosmos Predict2 have timesteps of their own for what is given; HunyuanVideo is told
        # by "guiding_frame_index", and is sampled with what is given as it is
        own_timesteps = type(base).process_timestep is not BaseModel.process_timestep
        self.takes_given_parts = own_timesteps or type(base) is HunyuanVideoModel
        self.needs_start_image = _is_given_pictures(base)
        network_options = getattr(base.diffusion_model, "params", None)
        self.guidance_distilled = bool(getattr(network_options, "guidance_embed", False))
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
            differentiate_kernels()
            if self.device.type == "cpu":
                lean_norms(self.module)
            yield note

    def keeps_to_itself(self, owner: nn.Module, name: str) -> bool:
        return self._loader.keeps_to_itself(owner, name)

    def prepare_latents(self, latents: Tensor) -> Tensor:
        return self._base.process_latent_in(latents)

    def batch_conditioning(
        self, items: Sequence[ItemConditioning], latents: Tensor
    ) -> list[ConditioningBatch]:
        """See trainer.denoiser.Denoiser.batch_conditioning: what the host would sample as one batch is one. Gradients
        are recorded where a conditioning has them."""
        trained = any(t.requires_grad for item in items for t in tensors_in(item))
        with nullcontext() if trained else torch.no_grad():
            return self._batches(items, latents)

    def _batches(self, items: Sequence[ItemConditioning], latents: Tensor) -> list[ConditioningBatch]:
        conds = [self._model_conds(item, latents[i : i + 1]) for i, item in enumerate(items)]
        groups: list[list[int]] = []
        for place, own in enumerate(conds):
            found = next((g for g in groups if self._can_concat(conds[g[0]], own)), None)
            if found is None:
                groups.append([place])
            else:
                found.append(place)
        return [ConditioningBatch(tuple(group), _concat([conds[i] for i in group])) for group in groups]

    def _model_conds(self, item: ItemConditioning, latents: Tensor) -> ModelConds:
        """The network's arguments for one item, as sampling from an empty latent of this shape (1, C, [F,] H, W)."""
        (encoded,) = comfy.samplers.encode_model_conds(
            self._base.extra_conds,
            [{**item, "model_conds": {}}],
            latents,
            self.device,
            "positive",
            latent_image=torch.zeros_like(latents),
            denoise_mask=None,
            seed=0,
            latent_shapes=[tuple(latents.shape)],
        )
        return {
            name: cond.process_cond(batch_size=1, device=self.device, area=None)
            for name, cond in encoded["model_conds"].items()
        }

    def _can_concat(self, a: ModelConds, b: ModelConds) -> bool:
        """The host's rule. Where it would repeat the shorter of two captions, that changes nothing in cross-attention,
        as a UNet has it; in a network that lets words see each other the lengths must be equal."""
        if not comfy.samplers.cond_equal_size(a, b):
            return False
        if isinstance(self._base.diffusion_model, HunyuanVideo) and "attention_mask" in a:
            return False  # its attention has one mask for the whole batch
        repeats = any(
            isinstance(c, comfy.conds.CONDCrossAttn) and c.size() != b[k].size() for k, c in a.items()
        )
        return not repeats or isinstance(self._base.diffusion_model, UNetModel)

    def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Raises Stopped when the host's interrupt arrives inside: every host layer looks for it."""
        try:
            return self._forward(noisy, timestep, conditioning)
        except comfy.model_management.InterruptProcessingException as interrupt:
            raise Stopped from interrupt

    def _forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        options = {
            **self._patcher.model_options.get("transformer_options", {}),
            "cond_or_uncond": [0],
            "sigmas": sigma_of(self._parameters, timestep),
            "optimized_attention_override": attention,
        }
        with self._writes.forward(self.module):
            answer: Tensor = self._caller()._apply_model(
                noisy, timestep, transformer_options=options, **conditioning
            )
        return answer

    def _caller(self) -> Any:
        """The host's model around the clone of its network. Nodes may wrap apply_model (to compile the network, say);
        these wrappers mean the host's network, so _apply_model inside them is called."""
        caller = copy.copy(self._base)
        values = vars(caller)
        values["_modules"] = {**values["_modules"], "diffusion_model": self.module}
        del values["_modules"]["model_sampling"]
        values["model_sampling"] = _AsTheNetworkHasIt(self._base.model_sampling)
        values["manual_cast_dtype"] = self.dtype
        values["current_patcher"] = None  # host 0.33 would prefetch the weights of its own network
        return caller


class _AsTheNetworkHasIt:
    """A model_sampling for inputs that are scaled already, the network's own timesteps, and its raw output."""

    def __init__(self, sampling: Any) -> None:
        self._sampling = sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampling, name)

    def calculate_input(self, timestep: Tensor, noisy: Tensor) -> Tensor:
        return noisy

    def timestep(self, timestep: Tensor) -> Tensor:
        return timestep

    def calculate_denoised(self, timestep: Tensor, output: Tensor, noisy: Tensor) -> Tensor:
        return output


def _is_given_pictures(base: Any) -> bool:
    """Whether the network reads the latents of a picture beside the noise and was trained on no video without one, by
    the channels that it reads: the host calls Wan 2.2 14B's image-to-video model by the name of the text-to-video one.
    Left out are those of which one network draws with and without (HunyuanVideo 1.5, Kandinsky 5)."""
    if isinstance(base, WAN21):
        if isinstance(base, WAN21_HuMo):
            return False  # the host itself makes what stands in these channels
        channels = base.latent_format.latent_channels
        beside = int(base.diffusion_model.patch_embedding.weight.shape[1]) - channels
        return bool(beside >= channels)  # fewer hold a mask alone, as SCAIL 2 has one
    return "concat_image" in base.concat_keys  # HunyuanVideo i2v and SkyReels


def _concat(conds: list[ModelConds]) -> Conditioning:
    """One batch of arguments; none of them an inference tensor, which backward could not keep."""
    if len(conds) == 1:
        values = {name: cond.cond for name, cond in conds[0].items()}
    else:
        values = comfy.samplers.cond_cat(conds)
    return {
        name: map_tensors(value, lambda t: t.clone() if t.is_inference() else t)
        for name, value in values.items()
    }
