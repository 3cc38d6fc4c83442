"""What a MODEL predicts, asked of its model_sampling as the graph has patched it.

The host puts a model_sampling together from a schedule (which noise levels there are, and their timesteps) and a
formula (how the network's output becomes a clean image). Both are recognised by the very methods they have, so a class
of another node pack that changes one is not taken for what it is derived from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ....trainer.config import Prediction
from ....trainer.errors import KilnError

# Formulas that are trained, by the class that has them: denoised = ...
DISCRETE: dict[str, Prediction] = {
    "EPS": "epsilon",  # x - sigma * output
    "V_PREDICTION": "v",  # x / (sigma^2 + 1) - output * sigma / sqrt(sigma^2 + 1)
    "X0": "x0",  # output
}

NAMES = {
    "EPS": "noise (eps)",
    "V_PREDICTION": "v",
    "X0": "clean images (x0)",
    "EDM": "EDM's clean images",
    "LCM": "an LCM's clean images",
    "IMG_TO_IMG": "one image from another (img_to_img)",
    "IMG_TO_IMG_FLOW": "one image from another (img_to_img)",
    "V_PREDICTION_DDPM": "v of CogVideoX",
}


@dataclass(frozen=True)
class Parameterisation:
    """See the attributes of the same names of trainer.denoiser.Denoiser."""

    prediction: Prediction
    timestep_scale: float = 1.0
    noise_scale: float = 1.0
    alphas_cumprod: Tensor | None = None
    sigma_is_ratio: bool = False  # the host's sigma is s / (1 - s) of the flow's noise level s


def parameterisation(sampling: Any) -> Parameterisation:
    """sampling: a model_sampling of the host.

    Raises:
        KilnError: what it predicts, or its schedule, is not one that is trained.
    """
    formula, schedule = _owner(sampling, "calculate_denoised"), _owner(sampling, "timestep")
    if formula == "X0" and _owner(sampling, "calculate_input") == "IMG_TO_IMG":  # derived from X0
        formula = "IMG_TO_IMG"
    if formula == "CONST" and schedule in ("ModelSamplingDiscreteFlow", "ModelSamplingFlux"):
        if any(c.__name__ == "ModelSamplingAV" for c in type(sampling).__mro__):  # 0.33
            raise KilnError(_refusal("flows of picture and sound together", "ModelSamplingAV"))
        scale = float(sampling.timestep(torch.tensor([1.0])))
        return Parameterisation(
            "flow", scale, float(getattr(sampling, "noise_scale", 1.0))
        )  # noise_scale: 0.33
    if formula == "COSMOS_RFLOW" and schedule == "ModelSamplingCosmosRFlow":
        # With s = sigma / (sigma + 1) its input is (1 - s) (x0 + sigma n) = (1 - s) x0 + s n, its timestep s, and
        # denoised = input - s * output: flow matching
        return Parameterisation("flow", sigma_is_ratio=True)
    if formula in DISCRETE and schedule == "ModelSamplingDiscrete" and sampling.sigma_data == 1.0:
        powers = 1.0 / (sampling.sigmas.detach().float().clone() ** 2 + 1.0)
        return Parameterisation(DISCRETE[formula], alphas_cumprod=powers)
    raise KilnError(_refusal(NAMES.get(formula, formula), schedule))


def sigma_of(parameters: Parameterisation, timestep: Tensor) -> Tensor:
    """The sigma that the host's sampler would be at, (B,)."""
    if parameters.alphas_cumprod is None:
        level = timestep / parameters.timestep_scale
        return level / (1 - level) if parameters.sigma_is_ratio else level
    power = parameters.alphas_cumprod.to(timestep.device)[timestep.long()]
    return ((1 - power) / power).sqrt()


def _refusal(what: str, schedule: str) -> str:
    return (
        f"This model predicts {what} with the schedule {schedule}, which cannot be trained; connect a model that "
        "predicts noise (eps), v or x0 at discrete timesteps, or a flow."
    )


def _owner(sampling: Any, method: str) -> str:
    """The name of the host's class whose method it is; with its module for classes of others."""
    owner = next((c for c in type(sampling).__mro__ if method in vars(c)), type(sampling))
    known = owner.__module__ == comfy.model_sampling.__name__ or owner.__name__ == "LCM"
    return owner.__name__ if known else f"{owner.__module__}.{owner.__name__}"
