"""Pure functions: the noise level, the noisy input, the target, the loss.

Flow matching (Wan, SD3, Flux):  x_s = (1 - s) x_0 + s n,   target n - x_0,   timestep scale * s.
    Lipman et al. 2022 (arXiv 2210.02747); Esser et al. 2024 (arXiv 2403.03206), eq. 13 and 19 for logit-normal,
    section 5.3.2 for the shift.
Epsilon and v prediction (SD 1.5, SDXL, SD 2):  x_t = sqrt(a) x_0 + sqrt(1 - a) n  with a = alphas_cumprod[t],
    target n, or v = sqrt(a) n - sqrt(1 - a) x_0, or x_0 (Salimans & Ho 2022, arXiv 2202.00512, section 4 and
    appendix D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
    compute_snr,
)
from torch import Tensor

from ..config import AUTO, ObjectiveConfig, Prediction
from ..denoiser import Denoiser
from ..errors import KilnError
from ..noise_defaults import shift_at


@dataclass(frozen=True)
class NoisyInput:
    """Noised latents, the target of the prediction, and the level of both; batch first."""

    noisy: Tensor  # (B, C, [F,] H, W)
    timestep: Tensor  # (B,) in the model's own unit
    target: Tensor  # same shape as noisy
    level: Tensor  # (B,) share 0-1 of the model's noise range, for reports


def check_objective(config: ObjectiveConfig, prediction: Prediction) -> None:
    """Raise KilnError when the settings are not for this kind of model."""
    if prediction == "flow" and config.weighting == "min_snr":
        raise KilnError(
            "weighting is min_snr and this model is trained by flow matching; choose none, sigma_sqrt or cosmap."
        )
    if prediction != "flow" and config.weighting in ("sigma_sqrt", "cosmap"):
        raise KilnError(
            f"weighting is {config.weighting} and this model predicts {prediction}; choose none or min_snr."
        )
    if prediction == "flow" and config.noise_offset:
        raise KilnError(
            "noise_offset is for models that predict noise or v; set it to 0 for this flow-matching model."
        )


def draw_levels(
    config: ObjectiveConfig,
    prediction: Prediction,
    count: int,
    generator: torch.Generator,
    shape: Sequence[int],
) -> Tensor:
    """Noise levels in [min_timestep, max_timestep], (count,) fp32 on the CPU.

    The shift applies to flow models only; min and max cut the range afterwards, by rescaling, so that no draw is
    wasted.

    Args:
        config: resolved, see trainer/noise_defaults.py.
        shape: (C, [F,] h, w) of the latents, for a shift that depends on it.
    """
    assert config.timestep_sampling != AUTO, "the config is resolved before a run"
    level = compute_density_for_timestep_sampling(
        "none" if config.timestep_sampling == "uniform" else config.timestep_sampling,
        count,
        logit_mean=config.logit_mean,
        logit_std=config.logit_std,
        mode_scale=config.mode_scale,
        generator=generator,
    )
    if prediction == "flow":
        level = shift_level(level, shift_at(config, shape))
    return config.min_timestep + (config.max_timestep - config.min_timestep) * level


def shift_level(level: Tensor, shift: float) -> Tensor:
    """s -> k s / (1 + (k - 1) s): keeps 0 and 1, moves the rest towards noise for k > 1."""
    return shift * level / (1 + (shift - 1) * level)


def add_noise(denoiser: Denoiser, latents: Tensor, noise: Tensor, level: Tensor) -> NoisyInput:
    """Noise the latents to their levels in the way this model was trained.

    Args:
        denoiser: says what it predicts.
        latents: (B, C, [F,] H, W), already on the model's scale.
        noise: standard normal, same shape.
        level: (B,) in [0, 1].
    """
    if denoiser.prediction == "flow":
        sigma = _per_item(level, latents)
        if denoiser.noise_scale != 1:
            noise = noise * denoiser.noise_scale
        return NoisyInput(
            noisy=torch.lerp(latents, noise, sigma),
            timestep=level * denoiser.timestep_scale,
            target=noise - latents,
            level=level,
        )
    assert denoiser.alphas_cumprod is not None, "epsilon and v models have discrete timesteps"
    steps = len(denoiser.alphas_cumprod)
    timestep = (level * steps).long().clamp(max=steps - 1)
    power = _per_item(denoiser.alphas_cumprod.to(latents.device)[timestep].to(latents.dtype), latents)
    targets = {"epsilon": noise, "x0": latents, "v": vp_velocity(latents, noise, power)}
    return NoisyInput(
        noisy=vp_noise(latents, noise, power),
        timestep=timestep.float(),
        target=targets[denoiser.prediction],
        level=level,
    )


def vp_noise(latents: Tensor, noise: Tensor, power: Tensor) -> Tensor:
    """sqrt(a) x_0 + sqrt(1 - a) n for signal power a."""
    return power.sqrt() * latents + (1 - power).sqrt() * noise


def vp_velocity(latents: Tensor, noise: Tensor, power: Tensor) -> Tensor:
    """sqrt(a) n - sqrt(1 - a) x_0 for signal power a."""
    return power.sqrt() * noise - (1 - power).sqrt() * latents


def level_weight(config: ObjectiveConfig, denoiser: Denoiser, noised: NoisyInput) -> Tensor:
    """How much each item's noise level counts, (B,).

    min_snr: min(SNR, gamma) for x0, / SNR for noise, / (SNR + 1) for v (Hang et al. 2023, arXiv 2303.09556).
    sigma_sqrt: sigma^-2, cosmap: 2 / (pi (1 - 2 sigma + 2 sigma^2)) (Esser et al. 2024, arXiv 2403.03206).
    sigma_sqrt is held below 1e4, as it has no bound.
    """
    if config.weighting == "none":
        return torch.ones_like(noised.level)
    if config.weighting != "min_snr":
        return compute_loss_weighting_for_sd3(config.weighting, noised.level).clamp(max=1e4)
    powers = SimpleNamespace(alphas_cumprod=denoiser.alphas_cumprod)
    ratio = compute_snr(powers, noised.timestep.long())
    below = {"epsilon": ratio, "v": ratio + 1, "x0": torch.ones_like(ratio)}[denoiser.prediction]
    return ratio.clamp(max=config.min_snr_gamma) / below


def offset_noise(config: ObjectiveConfig, noise: Tensor, generator: torch.Generator) -> Tensor:
    """noise (C, [F,] H, W) with a random constant added to each channel."""
    if not config.noise_offset:
        return noise
    constant = torch.randn(len(noise), generator=generator).reshape(-1, *[1] * (noise.ndim - 1))
    return noise + config.noise_offset * constant


def loss_per_item(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    config: ObjectiveConfig | None = None,
) -> Tensor:
    """Mean error of each item, (B,) fp32.

    Args:
        prediction, target: (B, C, [F,] H, W).
        mask: (B, 1, [F,] H, W) in 0..1; the mean is taken over what it keeps. None keeps everything.
        config: which measure of error; squared without it.
    """
    error = _error(prediction.float(), target.float(), config or ObjectiveConfig())
    if mask is None:
        return error.flatten(1).mean(1)
    kept = mask.to(error).expand_as(error)
    return (error * kept).flatten(1).sum(1) / kept.flatten(1).sum(1).clamp(min=1e-6)


def _error(prediction: Tensor, target: Tensor, config: ObjectiveConfig) -> Tensor:
    if config.loss == "l1":
        return torch.nn.functional.l1_loss(prediction, target, reduction="none")
    if config.loss == "huber":
        return torch.nn.functional.huber_loss(prediction, target, reduction="none", delta=config.huber_delta)
    return torch.nn.functional.mse_loss(prediction, target, reduction="none")


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) to broadcast over `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.device, like.dtype)
