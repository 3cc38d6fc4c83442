"""Noise levels, loss and weighting; the formulas are in trainer/loop/objective.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import KilnError
from .fields import check_ranges, setting

Prediction = Literal["flow", "epsilon", "v", "x0"]
"""What a model of this kind is trained to give: a velocity of flow matching, the noise, v, or the clean latents."""

AUTO = "auto"

AUTO_SHIFT = 0.0
"""The value of `shift` that leaves it to the model's family; shown as 0, since a number widget cannot say auto."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """At which noise levels the model is trained, and how its errors count."""

    timestep_sampling: str = setting(
        AUTO,
        "How noise levels are drawn: logit_normal favours the middle, uniform takes all alike, mode is SD3's flatter "
        "curve with raised ends. auto: as the model's family is trained (uniform for SD and SDXL, else logit_normal).",
        options=(AUTO, "logit_normal", "uniform", "mode"),
    )
    logit_mean: float = setting(
        0.0, "Centre of logit_normal; above 0 means noisier.", minimum=-5.0, maximum=5.0, step=0.1
    )
    logit_std: float = setting(
        1.0, "Width of logit_normal; larger is nearer to uniform.", minimum=0.01, maximum=10.0, step=0.1
    )
    mode_scale: float = setting(
        1.29, "Strength of mode; 0 is uniform.", minimum=-1.0, maximum=1.75, step=0.01
    )
    shift: float = setting(
        AUTO_SHIFT,
        "Moves drawn noise levels upwards: s -> k*s / (1 + (k-1)*s). 0 is auto: as the model's family is trained, for "
        "Flux, Qwen-Image and LTX-Video by each item's size, 3 for Wan and SD3. 1 leaves them; 5-8 suit large videos. "
        "Flow-matching models only.",
        minimum=AUTO_SHIFT,
        maximum=100.0,
        step=0.1,
    )
    min_timestep: float = setting(
        0.0,
        "Lowest noise level trained, as a share 0-1 of the model's whole range. Wan 2.2's low-noise experts: 0.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    max_timestep: float = setting(
        1.0,
        "Highest noise level trained, as a share 0-1 of the model's whole range. Wan 2.2's low-noise experts: 0.875 "
        "(text to video), 0.9 (image to video).",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )

    loss: str = setting(
        "l2",
        "Measure of error: l2 (squared), l1 (absolute), huber (squared below huber_delta, absolute above; bears "
        "outliers).",
        options=("l2", "l1", "huber"),
    )
    huber_delta: float = setting(
        0.1, "Where huber turns from squared to absolute.", minimum=0.0001, maximum=10.0, step=0.01
    )
    weighting: str = setting(
        "none",
        "How much each noise level counts. min_snr is for models that predict noise or v; sigma_sqrt and cosmap "
        "(SD3) are for flow matching.",
        options=("none", "min_snr", "sigma_sqrt", "cosmap"),
    )
    min_snr_gamma: float = setting(
        5.0, "Ceiling of the signal-to-noise ratio in min_snr.", minimum=0.1, maximum=100.0, step=0.5
    )
    noise_offset: float = setting(
        0.0,
        "Adds a constant of this size to each channel of the noise, for darker and brighter images; 0.05 is usual, 0 "
        "switches it off. For models that predict noise or v.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    regularisation_weight: float = setting(
        1.0,
        "Factor on the loss of regularisation items (prior preservation).",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
    )

    preservation_weight: float = setting(
        1.0,
        "Factor on the loss of differential output preservation, 0-100: with class_word set on Caption Template, the "
        "model's answer to the caption with the class in the trigger word's place is kept what it is without the "
        "LoRA. 0 switches it off; without class_word it does nothing.",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
    )

    guidance: float = setting(
        1.0,
        "Guidance that a guidance-distilled model (Flux dev, HunyuanVideo) is told while it is trained; 1 is usual. A "
        "conditioning that brings its own keeps it. Other models have none.",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
    )
    size_conditioning: str = setting(
        AUTO,
        "Sizes that SDXL is told. item (auto): each item's original size, crop and training size; latent: the training "
        "size, as when sampling; 768: always 768 x 768, as earlier versions did. A conditioning that brings its own "
        "keeps them.",
        options=(AUTO, "item", "latent", "768"),
    )
    shift_by_size: str = ""
    """Not a widget but what shift 0 became for this model, written out in the run's record: "patch, n1, mu1, n2, mu2",
    see trainer/noise_defaults.py. Empty: shift is the same at every size."""
    automatic: str = ""
    """Not a widget either: names of the settings that were auto before they were written out, with commas."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min_timestep >= self.max_timestep:
            raise KilnError(
                f"min_timestep is {self.min_timestep} and max_timestep {self.max_timestep}; "
                "the minimum must be smaller."
            )
