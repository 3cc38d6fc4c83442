"""What `auto` means for each model family: how noise levels are drawn, and which sizes the model is told.

A family is named as the host names its class (comfy.supported_models, comfy.model_base). What is not in the table is
drawn logit-normal with shift 3, as for Wan and SD3. `resolve` writes the values out once, before a run; the run's
record, its run.toml and its checkpoints hold them, and a resumed run keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from .config import AUTO, AUTO_SHIFT, ObjectiveConfig, Prediction

ShiftBySize = str
""" "patch, n1, mu1, n2, mu2": latents of n tokens, patch x patch latent pixels each, get the shift exp(mu) with mu on
the straight line through (n1, mu1) and (n2, mu2). Text, so that it looks the same in every record."""

FLUX_SHIFT: ShiftBySize = "2, 256, 0.5, 4096, 1.15"


@dataclass(frozen=True, kw_only=True)
class NoiseDefaults:
    """How one family draws its noise levels."""

    sampling: str = "logit_normal"
    shift: float = 3.0
    shift_by_size: ShiftBySize = ""  # instead of shift


NOISE_DEFAULTS: dict[str, NoiseDefaults] = {
    # Black Forest Labs, flux/sampling.py: get_lin_function and time_shift; sd-scripts calls it flux_shift
    "Flux": NoiseDefaults(shift_by_size=FLUX_SHIFT),
    # compute_empirical_mu for many steps is the same line; one latent pixel is a token
    "Flux2": NoiseDefaults(shift_by_size="1, 256, 0.5, 4096, 1.15"),
    # Trained without a shift by its authors; sd-scripts: sigmoid
    "Chroma": NoiseDefaults(shift=1.0),
    # The scheduler_config.json of Qwen/Qwen-Image: base_shift 0.5, max_shift 0.9, max_image_seq_len 8192
    "QwenImage": NoiseDefaults(shift_by_size="2, 256, 0.5, 8192, 0.9"),
    # sd-scripts, nextdit_shift: the line of Flux; Z-Image, of the same class, is sampled with 3
    "ZImage": NoiseDefaults(),
    "Lumina2": NoiseDefaults(shift_by_size=FLUX_SHIFT),
    # LTX-Video-Trainer, timestep_samplers.py: sigmoid(n + mu) with mu by tokens, which is a shift of exp(mu)
    "LTXV": NoiseDefaults(shift_by_size="1, 1024, 0.95, 4096, 2.05"),
    # Esser et al. 2024 (arXiv 2403.03206), section 5.3.2: rf/lognorm(0, 1), shift 3 at 1024 x 1024
    "SD3": NoiseDefaults(),
    "WAN21": NoiseDefaults(),
    # Kong et al. 2024 (arXiv 2412.03603), section 4.5, and musubi-tuner: shift 7
    "HunyuanVideo": NoiseDefaults(shift=7.0),
    # The host's own sampling shift
    "AuraFlow": NoiseDefaults(shift=1.73),
}

DIFFUSION = NoiseDefaults(sampling="uniform", shift=1.0)
"""Models that predict noise, v or x0: every timestep alike (Ho et al. 2020, arXiv 2006.11239, algorithm 1)."""

SIZE_CONDITIONED = frozenset({"SDXL", "SDXLRefiner", "HunyuanDiT"})
"""Families that are told sizes."""


class Described(Protocol):
    """The part of a Denoiser that defaults depend on."""

    family: tuple[str, ...]
    prediction: Prediction


def defaults_for(family: Sequence[str], prediction: Prediction) -> NoiseDefaults:
    """family: the model's names, the most special first."""
    if prediction != "flow":
        return DIFFUSION
    return next((NOISE_DEFAULTS[name] for name in family if name in NOISE_DEFAULTS), NoiseDefaults())


def resolve(
    config: ObjectiveConfig, model: Described, resumed: dict[str, Any] | None = None
) -> ObjectiveConfig:
    """The same settings with every auto replaced by its value.

    Args:
        config: as on the nodes.
        model: the model to be trained.
        resumed: the objective of the checkpoint that the run goes on from: what was automatic keeps its value.
            Checkpoints of versions that knew no auto have every value written out.
    """
    defaults = defaults_for(model.family, model.prediction)
    saved: dict[str, Any] = {
        "timestep_sampling": defaults.sampling,
        "shift": defaults.shift,
        "shift_by_size": defaults.shift_by_size,
        "size_conditioning": "item",
    }
    if resumed is not None:
        saved |= {"shift_by_size": "", "size_conditioning": "768", **resumed}
    changes: dict[str, Any] = {}
    if config.timestep_sampling == AUTO:
        changes["timestep_sampling"] = saved["timestep_sampling"]
    if config.shift == AUTO_SHIFT and not config.shift_by_size:
        by_size = saved["shift_by_size"]
        changes |= {"shift_by_size": by_size, "shift": AUTO_SHIFT if by_size else saved["shift"]}
    if config.size_conditioning == AUTO:
        changes["size_conditioning"] = saved["size_conditioning"]
    return replace(config, **changes)


def shift_at(config: ObjectiveConfig, shape: Sequence[int]) -> float:
    """The shift of latents of the shape (C, [F,] h, w); `config` is resolved."""
    if not config.shift_by_size:
        assert config.shift != AUTO_SHIFT, "the config is resolved before a run"
        return config.shift
    patch, n1, mu1, n2, mu2 = map(float, config.shift_by_size.split(","))
    frames = shape[1] if len(shape) == 4 else 1
    tokens = frames * (shape[-2] / patch) * (shape[-1] / patch)
    return math.exp(mu1 + (mu2 - mu1) * (tokens - n1) / (n2 - n1))


def family_is_told_sizes(family: Sequence[str]) -> bool:
    """Whether the model is told original size, crop and target size."""
    return not SIZE_CONDITIONED.isdisjoint(family)
