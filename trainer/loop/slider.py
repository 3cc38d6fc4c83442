"""The target of a slider (Concept Sliders, Gandikota et al. 2023, arXiv 2311.12092, section 4.1):

    f_s(x, c)  ->  f(x, c) + s * eta * (f(x, c+) - f(x, c-))        s = 1 and s = -1

f is the model without the adapter and f_s the model with the adapter at strength s, c the target's conditioning, c+ and
c- those of its ends, x a noisy latent, eta the guidance. The paper trains s = 1 alone; here each micro-batch is trained
at both ends, as ai-toolkit does, so that the way between them is straight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Conditioning, ConditioningBatch, Denoiser
from .objective import NoisyInput


@dataclass(frozen=True)
class SliderEnds:
    """The conditionings of a micro-batch's two ends, each in as many batches as it needs."""

    positive: list[ConditioningBatch]
    negative: list[ConditioningBatch]
    guidance: float


@torch.no_grad()
def slider_targets(
    denoiser: Denoiser, noised: NoisyInput, conditioning: Conditioning, ends: SliderEnds
) -> tuple[Tensor, Tensor]:
    """The targets of strength 1 and -1, of the shape of noised.noisy: three forwards, with the adapter switched off."""
    middle = denoiser.forward(noised.noisy, noised.timestep, conditioning)
    way = _predict(denoiser, noised, ends.positive) - _predict(denoiser, noised, ends.negative)
    return middle + ends.guidance * way, middle - ends.guidance * way


def _predict(denoiser: Denoiser, noised: NoisyInput, batches: list[ConditioningBatch]) -> Tensor:
    answer = torch.empty_like(noised.noisy, dtype=torch.float32)
    for batch in batches:
        own = list(batch.items)
        answer[own] = denoiser.forward(noised.noisy[own], noised.timestep[own], batch.conditioning).float()
    return answer
