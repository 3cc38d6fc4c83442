"""Noise levels, loss and weighting; the formulas are in trainer/loop/objective.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import KilnError
from .fields import check_ranges, setting

Prediction = Literal["flow", "epsilon", "v"]
"""What a model of this kind is trained to give: a velocity of flow matching, the noise, or v."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """At which noise levels the model is trained, and how its errors count."""

    timestep_sampling: str = setting(
        "logit_normal",
        "How noise levels are drawn: logit_normal favours the middle, uniform takes all alike, mode is SD3's flatter "
        "curve with raised ends.",
        options=("logit_normal", "uniform", "mode"),
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
        3.0,
        "Moves drawn noise levels upwards: s -> k*s / (1 + (k-1)*s). 1 leaves them; 3 suits Wan at 480-512 pixels, "
        "5-8 large videos. Flow-matching models only.",
        minimum=0.01,
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

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min_timestep >= self.max_timestep:
            raise KilnError(
                f"min_timestep is {self.min_timestep} and max_timestep {self.max_timestep}; "
                "the minimum must be smaller."
            )
