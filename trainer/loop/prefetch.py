"""Prefetches the next step's noised micro-batches to the device.

Loading, drawing noise and copying are work for the CPU, done while the device still computes the step before. Every
draw is a function of the seed and the place in the run, so a micro-batch that is prefetched and never used changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TrainConfig
from ..dataset.batches import BatchOrder, ItemStore, SampleDraw
from ..denoiser import Conditioning, Denoiser
from ..rng import generator
from . import objective
from .distributed import ProcessGroup


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward works on, on the device; B items."""

    noised: objective.NoisyInput
    conditioning: Conditioning
    mask: Tensor | None  # (B, 1, [F,] h, w)
    factor: Tensor  # (B,): what each item's error counts for in the loss of the step
    place: int  # tells this forward's draws from all others


class Prefetcher:
    """Micro-batches by step."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        order: BatchOrder,
        store: ItemStore,
        group: ProcessGroup,
    ) -> None:
        self._denoiser, self._config, self._group = denoiser, config, group
        self._order, self._store = order, store
        self._ready: tuple[tuple[int, int], list[MicroBatch]] | None = None

    def batches(self, step: int) -> list[list[SampleDraw]]:
        """The sample draws of a step's batches, of all processes."""
        count = self._config.optimizer.gradient_accumulation
        return [self._order.batch(step * count + micro) for micro in range(count)]

    def prefetch(self, step: int, parts: int) -> None:
        """Make a step's micro-batches before they are asked for; each batch is cut into `parts`."""
        self._ready = ((step, parts), self._make(step, parts))

    def get(self, step: int, parts: int) -> list[MicroBatch]:
        """A step's micro-batches of this process: the prefetched ones where there are any."""
        ready, self._ready = self._ready, None
        return ready[1] if ready is not None and ready[0] == (step, parts) else self._make(step, parts)

    def _make(self, step: int, parts: int) -> list[MicroBatch]:
        batches = self.batches(step)
        count = sum(map(len, batches))
        micro_batches = []
        for micro, batch in enumerate(batches):
            place = step * len(batches) + micro
            for part in range(parts):
                draws = list(self._group.shard(batch))[part::parts]
                if draws:
                    index = place + (part << 40) + (self._group.rank << 50)
                    micro_batches.append(self._micro_batch(draws, count, index))
        return micro_batches

    def _micro_batch(self, draws: list[SampleDraw], count: int, place: int) -> MicroBatch:
        config, batch = self._config, self._store.load(draws)
        latents = self._denoiser.prepare_latents(self._to_device(batch.latents.float()))
        noise, levels = [], []
        for draw in draws:  # drawn on the CPU, so that every device sees the same numbers
            rng = generator(config.seed, "noise", draw.epoch, draw.entry)
            noise.append(torch.randn(latents.shape[1:], generator=rng))
            levels.append(objective.draw_levels(config.objective, self._denoiser.prediction, 1, rng))
            noise[-1] = objective.offset_noise(config.objective, noise[-1], rng)
        noised = objective.add_noise(
            self._denoiser,
            latents,
            self._to_device(torch.stack(noise)),
            self._to_device(torch.cat(levels)),
        )
        factor = batch.weight * self._role_weight(draws) / count
        return MicroBatch(
            noised,
            {k: self._to_device(v) for k, v in batch.conditioning.items()},
            None if batch.mask is None else self._to_device(batch.mask),
            objective.level_weight(config.objective, self._denoiser, noised) * self._to_device(factor),
            place,
        )

    def _role_weight(self, draws: list[SampleDraw]) -> Tensor:
        weight = self._config.objective.regularisation_weight
        roles = [self._store.items[d.item].role for d in draws]
        return torch.tensor([weight if role == "regularisation" else 1.0 for role in roles])

    def _to_device(self, tensor: Tensor) -> Tensor:
        """From pinned memory the copy does not wait for the work that the device still has."""
        device = self._denoiser.device
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)
