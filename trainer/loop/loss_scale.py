"""Loss scaling for models that compute in fp16, on devices without bf16.

fp16 holds nothing below 6e-8, and the gradient of a mean over a large latent is smaller than that. So the loss is
multiplied by a power of two before backward and the gradients are divided by it before they are clipped, which is
exact. Where a scaled gradient overflows, the step is computed again at half the scale; after GROWTH_INTERVAL steps
without an overflow the scale is doubled. (Micikevicius et al. 2017, arXiv 1710.03740, section 3.2; the constants are
torch.amp.GradScaler's, which would wait for the device and skip the step.) The scale is in GuardState, so a resumed run
goes on with it.
"""

from __future__ import annotations

import math

import torch

from .guards import GuardState

GROWTH_INTERVAL = 2000
LARGEST = 2.0**24


def loss_scale(guard: GuardState, dtype: torch.dtype) -> float:
    """The factor on the loss of the next step; 1 for models that do not compute in fp16.

    dtype: the model's compute type.
    """
    return guard.loss_scale if dtype == torch.float16 else 1.0


def overflowed(guard: GuardState, loss: float, grad_norm: float) -> bool:
    """Adjust the scale after a step's gradients of an fp16 model; True when they overflowed at a scale above 1.

    Args:
        loss: unscaled. Not finite: the forward is at fault, and the scale stays.
        grad_norm: not finite when a gradient overflowed.
    """
    if not math.isfinite(loss):
        return False
    if math.isfinite(grad_norm):
        guard.steps_since_overflow += 1
        if guard.steps_since_overflow >= GROWTH_INTERVAL:
            guard.loss_scale = min(2 * guard.loss_scale, LARGEST)
            guard.steps_since_overflow = 0
        return False
    if guard.loss_scale <= 1:
        return False
    guard.loss_scale /= 2
    guard.steps_since_overflow = 0
    guard.overflows += 1
    return True
