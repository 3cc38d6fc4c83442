"""What the steps are asked, made ready on the device one step ahead.

Loading, drawing noise and moving tensors is work for the processor; it is done while the device still computes the step
before. Every draw is a function of the seed and the place in the run, so questions that nobody asks after all change
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import objective
from .config import TrainConfig
from .dataset.batches import BatchOrder, ItemStore, Showing
from .denoiser import Conditioning, Denoiser
from .parallel import Alone
from .rng import generator


@dataclass(frozen=True)
class Portion:
    """What one forward and backward works on, on the device."""

    question: objective.Question
    conditioning: Conditioning
    mask: Tensor | None  # (B, 1, [F,] h, w)
    factor: Tensor  # (B,): what each item's error counts for in the loss of the step
    place: int  # tells this forward's draws from all others


class Feed:
    """Questions by step."""

    def __init__(
        self, denoiser: Denoiser, config: TrainConfig, order: BatchOrder, store: ItemStore, team: Alone
    ) -> None:
        self._denoiser, self._config, self._team = denoiser, config, team
        self._order, self._store = order, store
        self._ready: tuple[tuple[int, int], list[Portion]] | None = None

    def batches(self, step: int) -> list[list[Showing]]:
        """The showings of a step's batches, of all processes."""
        count = self._config.optimizer.gradient_accumulation
        return [self._order.batch(step * count + micro) for micro in range(count)]

    def prepare(self, step: int, parts: int) -> None:
        """Make a step's questions before they are taken; each batch is cut into `parts`."""
        self._ready = ((step, parts), self._make(step, parts))

    def take(self, step: int, parts: int) -> list[Portion]:
        """A step's questions of this process: the prepared ones where there are any."""
        ready, self._ready = self._ready, None
        return ready[1] if ready is not None and ready[0] == (step, parts) else self._make(step, parts)

    def _make(self, step: int, parts: int) -> list[Portion]:
        batches = self.batches(step)
        count = sum(map(len, batches))
        portions = []
        for micro, batch in enumerate(batches):
            place = step * len(batches) + micro
            for part in range(parts):
                showings = list(self._team.share(batch))[part::parts]
                if showings:
                    draws = place + (part << 40) + (self._team.rank << 50)
                    portions.append(self._portion(showings, count, draws))
        return portions

    def _portion(self, showings: list[Showing], count: int, place: int) -> Portion:
        config, batch = self._config, self._store.load(showings)
        latents = self._denoiser.prepare_latents(self._to_device(batch.latents.float()))
        noise, levels = [], []
        for showing in showings:  # drawn on the CPU, so that every device sees the same numbers
            draws = generator(config.seed, "noise", showing.epoch, showing.entry)
            noise.append(torch.randn(latents.shape[1:], generator=draws))
            levels.append(objective.draw_levels(config.objective, self._denoiser.prediction, 1, draws))
            noise[-1] = objective.offset_noise(config.objective, noise[-1], draws)
        question = objective.ask(
            self._denoiser,
            latents,
            self._to_device(torch.stack(noise)),
            self._to_device(torch.cat(levels)),
        )
        factor = batch.weight * self._role_weight(showings) / count
        return Portion(
            question,
            {k: self._to_device(v) for k, v in batch.conditioning.items()},
            None if batch.mask is None else self._to_device(batch.mask),
            objective.level_weight(config.objective, self._denoiser, question) * self._to_device(factor),
            place,
        )

    def _role_weight(self, showings: list[Showing]) -> Tensor:
        weight = self._config.objective.regularisation_weight
        roles = [self._store.items[s.item].role for s in showings]
        return torch.tensor([weight if role == "regularisation" else 1.0 for role in roles])

    def _to_device(self, tensor: Tensor) -> Tensor:
        """From pinned memory the copy does not wait for the work that the device still has."""
        device = self._denoiser.device
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)
