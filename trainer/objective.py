"""Pure functions: which noise level, what the model sees, what it should answer.

Flow matching (Wan, SD3, Flux):  x_s = (1 - s) x_0 + s n,   target n - x_0,   timestep scale * s.
    Lipman et al. 2022 (arXiv 2210.02747); Esser et al. 2024 (arXiv 2403.03206), eq. 13 and 19 for logit-normal,
    section 5.3.2 for the shift.
Epsilon and v prediction (SD 1.5, SDXL, SD 2):  x_t = sqrt(a) x_0 + sqrt(1 - a) n  with a = alphas_cumprod[t],
    target n, or v = sqrt(a) n - sqrt(1 - a) x_0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from .config import ObjectiveConfig, Prediction
from .denoiser import Denoiser


@dataclass(frozen=True)
class Question:
    """What the model is shown and should answer, batch first."""

    noisy: Tensor  # (B, C, [F,] H, W)
    timestep: Tensor  # (B,) in the model's own unit
    target: Tensor  # same shape as noisy
    level: Tensor  # (B,) share 0-1 of the model's noise range, for reports


def draw_levels(
    config: ObjectiveConfig, prediction: Prediction, count: int, generator: torch.Generator
) -> Tensor:
    """Noise levels in [min_timestep, max_timestep], (count,) fp32 on the CPU.

    The shift applies to flow models only; min and max cut the range afterwards, by rescaling, so that no draw is
    wasted.
    """
    level = compute_density_for_timestep_sampling(
        "logit_normal" if config.timestep_sampling == "logit_normal" else "none",
        count,
        logit_mean=0.0,
        logit_std=1.0,
        generator=generator,
    )
    if prediction == "flow":
        level = shift_level(level, config.shift)
    return config.min_timestep + (config.max_timestep - config.min_timestep) * level


def shift_level(level: Tensor, shift: float) -> Tensor:
    """s -> k s / (1 + (k - 1) s): keeps 0 and 1, moves the rest towards noise for k > 1."""
    return shift * level / (1 + (shift - 1) * level)


def ask(denoiser: Denoiser, latents: Tensor, noise: Tensor, level: Tensor) -> Question:
    """Noise the latents to their levels in the way this model was trained.

    Args:
        denoiser: says what it predicts.
        latents: (B, C, [F,] H, W), already on the model's scale.
        noise: standard normal, same shape.
        level: (B,) in [0, 1].
    """
    if denoiser.prediction == "flow":
        sigma = _per_item(level, latents)
        return Question(
            noisy=torch.lerp(latents, noise, sigma),
            timestep=level * denoiser.timestep_scale,
            target=noise - latents,
            level=level,
        )
    assert denoiser.alphas_cumprod is not None, "epsilon and v models have discrete timesteps"
    steps = len(denoiser.alphas_cumprod)
    timestep = (level * steps).long().clamp(max=steps - 1)
    power = _per_item(denoiser.alphas_cumprod.to(latents.device)[timestep].to(latents.dtype), latents)
    noisy, velocity = vp_noise(latents, noise, power), vp_velocity(latents, noise, power)
    target = noise if denoiser.prediction == "epsilon" else velocity
    return Question(noisy=noisy, timestep=timestep.float(), target=target, level=level)


def vp_noise(latents: Tensor, noise: Tensor, power: Tensor) -> Tensor:
    """sqrt(a) x_0 + sqrt(1 - a) n for signal power a."""
    return power.sqrt() * latents + (1 - power).sqrt() * noise


def vp_velocity(latents: Tensor, noise: Tensor, power: Tensor) -> Tensor:
    """sqrt(a) n - sqrt(1 - a) x_0 for signal power a."""
    return power.sqrt() * noise - (1 - power).sqrt() * latents


def loss_per_item(answer: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each item, (B,) fp32.

    Args:
        answer, target: (B, C, [F,] H, W).
        mask: (B, 1, [F,] H, W) in 0..1; the mean is taken over what it keeps. None keeps everything.
    """
    error = torch.nn.functional.mse_loss(answer.float(), target.float(), reduction="none")
    if mask is None:
        return error.flatten(1).mean(1)
    kept = mask.to(error).expand_as(error)
    return (error * kept).flatten(1).sum(1) / kept.flatten(1).sum(1).clamp(min=1e-6)


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) to broadcast over `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.device, like.dtype)
