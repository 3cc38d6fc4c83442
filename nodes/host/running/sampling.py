"""Samples during a run, by the host's own sampler with the LoRA patched on as every loader of it would.

This is what users will get from the file, and it shares nothing with the training: the run has left the device, the
patches lie on a clone of the MODEL, the noise comes from a generator of its own, and torch's global generators are
put back to where they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import numpy as np
import torch
from torch import Tensor

from ....trainer.config import SampleConfig, TrainConfig
from ....trainer.config.noise_ranges import boundary_of
from ....trainer.errors import KilnError
from ....trainer.events import Stopped
from ....trainer.lora_files.metadata import without_local_paths
from ....trainer.runs.samples import Sample, sample_path, write_sample
from ..models.lora import apply_lora
from ..models.text_encoder import HostTextEncoder

SAMPLERS: list[str] = list(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS: list[str] = list(comfy.samplers.KSampler.SCHEDULERS)


@dataclass(frozen=True)
class SampleTools:
    """What KilnSampleSettings hands to the run beside its plain settings."""

    vae: Any
    positive: dict[str, Any]  # CONDITIONING by prompt
    negative: Any  # CONDITIONING
    other_expert: Any = None  # the MODEL for the other part of the sampling's steps, where there are two


def sample_tools(clip: Any, vae: Any, config: SampleConfig, other_expert: Any = None) -> SampleTools:
    """Encode the prompts: from here on the text encoder is not needed.

    Args:
        other_expert: MODEL for the noise levels that the trained one is not for.

    Raises:
        KilnError: there is no prompt, or the host has no such sampler.
    """
    if not config.each():
        raise KilnError("prompts is empty; write what the samples should show, one prompt per line.")
    for name, value, known in (
        ("sampler_name", config.sampler_name, SAMPLERS),
        ("scheduler", config.scheduler, SCHEDULERS),
    ):
        if value not in known:
            raise KilnError(f"{name} is {value!r}; this ComfyUI has {', '.join(known)}.")

    return SampleTools(vae, *_encoded_prompts(clip, config), other_expert)


def _encoded_prompts(clip: Any, config: SampleConfig) -> tuple[dict[str, Any], Any]:
    """CONDITIONING by prompt, and that of the negative prompt."""

    def encode(text: str) -> Any:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    return {prompt: encode(prompt) for prompt, _ in config.each()}, encode(config.negative_prompt)


class HostSampler:
    """A Sampler of one run."""

    def __init__(
        self,
        model: Any,
        tools: SampleTools,
        config: TrainConfig,
        folder: Path,
        graph: Mapping[str, Any],
        text_encoder: HostTextEncoder | None = None,
    ) -> None:
        """
        Args:
            model: the MODEL that is trained.
            tools: what is drawn with.
            folder: the run's.
            graph: for the pictures' metadata.
            text_encoder: where it is trained too: the prompts are encoded anew then.

        Raises:
            KilnError: there is another expert, and the trained levels are no expert's.
        """
        if tools.other_expert is not None:
            boundary_of(config.objective)  # raises before anything is trained
        self._model, self._tools, self._config, self._folder = model, tools, config, folder
        self._clip = text_encoder and text_encoder.clip
        self._graph = without_local_paths(dict(graph)) if config.embed_metadata else {}

    def draw(self, adapter: dict[str, Tensor] | None, step: int) -> Iterator[Sample]:
        """See trainer.runs.samples.Sampler."""
        from ....trainer.lora_files.export import export_adapter  # it brings peft, which takes seconds

        config = self._config.sample
        model = self._model
        if adapter is not None:
            lora = export_adapter(adapter, self._config.adapter)
            model, clip = apply_lora(model, self._clip, lora, config.strength)
            if clip is not None:
                self._encode_anew(clip)
        for place, (prompt, seed) in enumerate(config.each()):
            try:
                frames = self._frames(model, prompt, seed)
            except comfy.model_management.InterruptProcessingException as interrupt:
                raise Stopped from interrupt
            path = sample_path(self._folder, step, place)
            animated = write_sample(path, frames, config.fps, self._graph)
            yield Sample(place=place, prompt=prompt, path=path, animated=animated)

    def _encode_anew(self, clip: Any) -> None:
        """The prompts, by the text encoder as it is now."""
        try:
            with torch.inference_mode():
                positive, negative = _encoded_prompts(clip, self._config.sample)
        except comfy.model_management.InterruptProcessingException as interrupt:
            raise Stopped from interrupt
        self._tools = replace(self._tools, positive=positive, negative=negative)

    def _frames(self, model: Any, prompt: str, seed: int) -> np.ndarray:
        """(F, H, W, 3), uint8."""
        config, tools = self._config.sample, self._tools
        device = torch.device(model.load_device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
            empty = comfy.sample.fix_empty_latent_channels(model, _empty_latent(model, tools.vae, config))
            # As the host draws it, which would reseed the generator that everybody uses
            noise = torch.randn(empty.shape, generator=torch.Generator("cpu").manual_seed(seed))
            latent = self._sampled(model, noise, prompt, empty, seed)
            images = tools.vae.decode(latent)  # (1, F, H, W, 3), (1, H, W, 3) of an image VAE
            images = images.reshape(-1, *images.shape[-3:])[..., :3]
            if not images.isfinite().all():
                raise KilnError("the model drew numbers that are not finite")
            return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()

    def _sampled(self, model: Any, noise: Tensor, prompt: str, empty: Tensor, seed: int) -> Tensor:
        """By one model, or by two experts in turn, as two KSampler (Advanced) nodes in a row do it."""
        config, tools = self._config.sample, self._tools

        def sample(expert: Any, noise: Tensor, latent: Tensor, **steps: Any) -> Tensor:
            found: Tensor = comfy.sample.sample(
                expert,
                noise,
                config.sampler_steps,
                config.cfg,
                config.sampler_name,
                config.scheduler,
                tools.positive[prompt],
                tools.negative,
                latent,
                disable_pbar=True,
                seed=seed,
                **steps,
            )
            return found

        if tools.other_expert is None:
            return sample(model, noise, empty)
        boundary, is_high = boundary_of(self._config.objective)
        high, low = (model, tools.other_expert) if is_high else (tools.other_expert, model)
        turn = _steps_above(high, config, boundary)
        latent = sample(high, noise, empty, last_step=turn, force_full_denoise=False) if turn else empty
        if turn == config.sampler_steps:
            return latent
        noise = torch.zeros_like(noise) if turn else noise
        return sample(low, noise, latent, start_step=turn, force_full_denoise=True)


def _steps_above(model: Any, config: SampleConfig, boundary: float) -> int:
    """How many of the sampler's steps begin at a noise level of at least `boundary`, a share 0-1 of the model's
    range."""
    sampler = comfy.samplers.KSampler(
        model, config.sampler_steps, model.load_device, config.sampler_name, config.scheduler, 1.0
    )
    sampling = model.get_model_object("model_sampling")
    level = sampling.timestep(sampler.sigmas[:-1]) / sampling.timestep(sampling.sigma_max)
    return int((level >= boundary).sum())


def _empty_latent(model: Any, vae: Any, config: SampleConfig) -> Tensor:
    latent_format = model.get_model_object("latent_format")
    ratio = vae.spacial_compression_decode()
    size = [config.height // ratio, config.width // ratio]
    if latent_format.latent_dimensions == 3:
        size.insert(0, (config.length - 1) // (vae.temporal_compression_decode() or 4) + 1)
    return torch.zeros([1, latent_format.latent_channels, *size])
