"""The validation loss, its best point, and early stopping.

Held-out items are always measured with the same noise at the same noise levels, so that the curve changes only when the
LoRA does.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import TrainConfig
from ..dataset.batches import ItemStore, SampleDraw
from ..denoiser import Denoiser
from ..events import ValidationPoint, best_of
from ..rng import generator
from . import objective
from .distributed import ProcessGroup
from .prefetch import conditioning_batches, keep_given_parts
from .text import TrainedText

SEED = 0  # not the run's: runs with different seeds are measured alike
DRAWS = 8192  # of the training distribution, to find its quantiles


def fixed_levels(config: TrainConfig, denoiser: Denoiser, shape: Sequence[int]) -> Tensor:
    """The middles of equal shares of what training draws, (levels,), from clean to noisy.

    shape: (C, [F,] h, w) of the latents.
    """
    count = config.validation.levels
    draws = objective.draw_levels(
        config.objective, denoiser.prediction, DRAWS, generator(SEED, "validation levels"), shape
    )
    return draws.quantile((torch.arange(count) + 0.5) / count)


@torch.no_grad()
def measure(
    denoiser: Denoiser,
    store: ItemStore,
    config: TrainConfig,
    step: int,
    group: ProcessGroup | None = None,
    text: TrainedText | None = None,
) -> ValidationPoint:
    """The loss of every item of `store` at every fixed level: one forward pass each, inside the session.

    text: the text encoder, where it is trained too.

    Raises:
        KilnError: an encoded file is gone.
    """
    group = group or ProcessGroup()
    sums = torch.zeros(config.validation.levels, dtype=torch.float64)
    mine = [SampleDraw(index, 0, index) for index in group.shard(range(len(store.items)))]
    for number, draw in enumerate(mine):
        index, batch = draw.item, store.load([draw])
        store.read_ahead(mine[number + 1 : number + 2])
        latents = denoiser.prepare_latents(batch.latents.to(denoiser.device, torch.float32))
        if text is not None:
            conditioning = text.conditioning(denoiser, batch.items, latents, config.objective)
        else:
            [(_, conditioning)] = conditioning_batches(denoiser, batch.items, latents, config.objective)
        for place, level in enumerate(fixed_levels(config, denoiser, latents.shape[1:])):
            noise = torch.randn(latents.shape, generator=generator(SEED, "validation", index, place))
            noised = objective.add_noise(
                denoiser, latents, noise.to(latents.device), level[None].to(latents.device)
            )
            noised = keep_given_parts(denoiser, batch, latents, noised)
            prediction = denoiser.forward(noised.noisy, noised.timestep, conditioning)
            error = objective.loss_per_item(prediction, noised.target, batch.mask, config.objective)
            error = error * objective.level_weight(config.objective, denoiser, noised)
            sums[place] += error.cpu().double().sum()
    bands = (group.all_reduce(sums) / len(store.items)).tolist()
    return ValidationPoint(step, statistics.fmean(bands), bands)


def is_over(points: Sequence[ValidationPoint], patience: int) -> bool:
    """Whether the last `patience` measurements were no better than the best before them."""
    best = best_of(points)
    return bool(patience) and best is not None and sum(p.step > best.step for p in points) >= patience
