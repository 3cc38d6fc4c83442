"""Prefetches the next step's noised micro-batches to the device.

Loading, drawing noise and copying are work for the CPU, done while the device still computes the step before. Every
draw is a function of the seed and the place in the run, so a micro-batch that is prefetched and never used changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..conditioning import ItemConditioning, map_tensors
from ..config import ObjectiveConfig, TrainConfig
from ..dataset.batches import Batch, BatchOrder, ItemStore, LoadedItem, SampleDraw
from ..dataset.encoded import EncodedItem
from ..denoiser import Conditioning, ConditioningBatch, Denoiser
from ..memory.streams import streams_of
from ..noise_defaults import family_is_told_sizes
from ..rng import generator
from . import objective
from .distributed import ProcessGroup
from .slider import SliderEnds


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward and backward, on the device; B items."""

    noised: objective.NoisyInput
    conditioning: Conditioning
    mask: Tensor | None  # (B, 1, [F,] h, w)
    factor: Tensor  # (B,): what each item's error counts for in the loss of the step
    place: int  # unique in the run: seeds the dropout of this forward
    among: tuple[
        int, ...
    ]  # B: which of the step's sample draws, of all processes, these are; none that is not learned
    preserves: bool = False  # the target is the model's own prediction without the adapter, not noised.target
    slider: SliderEnds | None = None  # the targets are those of a slider

    @property
    def learned(self) -> bool:
        """Whether its items are what is learned, and their errors say how well."""
        return not self.preserves and self.slider is None

    items: tuple[LoadedItem, ...] = ()  # B, where their captions are encoded in the step


class Prefetcher:
    """Micro-batches by step."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        order: BatchOrder,
        store: ItemStore,
        group: ProcessGroup,
        keeps_items: bool = False,
    ) -> None:
        """keeps_items: whether micro-batches know their items."""
        self._denoiser, self._config, self._group = denoiser, config, group
        self._keeps_items = keeps_items
        self._order, self._store = order, store
        self._ready: tuple[tuple[int, int], list[MicroBatch]] | None = None

    @property
    def items(self) -> Sequence[EncodedItem]:
        """Those that are trained on, as sample draws count them."""
        return self._store.items

    def batches(self, step: int) -> list[list[SampleDraw]]:
        """The sample draws of a step's batches, of all processes."""
        count = self._config.optimizer.gradient_accumulation
        return [self._order.batch(step * count + micro) for micro in range(count)]

    def prefetch(self, step: int, parts: int) -> None:
        """Make a step's micro-batches before they are asked for, and begin to read the files of the step after it;
        each batch is cut into `parts`."""
        self._ready = ((step, parts), self._make(step, parts))
        self._store.read_ahead([draw for b in self.batches(step + 1) for draw in self._group.shard(b)])

    def get(self, step: int, parts: int) -> list[MicroBatch]:
        """A step's micro-batches of this process: the prefetched ones where there are any."""
        ready, self._ready = self._ready, None
        return ready[1] if ready is not None and ready[0] == (step, parts) else self._make(step, parts)

    def _make(self, step: int, parts: int) -> list[MicroBatch]:
        batches = self.batches(step)
        count = sum(map(len, batches))
        micro_batches, first = [], 0
        for micro, batch in enumerate(batches):
            place = step * len(batches) + micro
            among, first = range(first, first + len(batch)), first + len(batch)
            for part in range(parts):
                draws = list(self._group.shard(batch))[part::parts]
                if draws:
                    index = place + (part << 40) + (self._group.rank << 50)
                    these = self._group.shard(among)[part::parts]
                    micro_batches += self._micro_batches(draws, these, count, index)
        return micro_batches

    def _micro_batches(
        self, draws: list[SampleDraw], among: Sequence[int], count: int, place: int
    ) -> list[MicroBatch]:
        """One, or as many as the conditionings of these items need: what cannot be one batch runs in turn."""
        config, denoiser, batch = self._config, self._denoiser, self._store.load(draws)
        latents = denoiser.prepare_latents(self._to_device(batch.latents.float()))
        noise, levels = [], []
        for draw in draws:  # drawn on the CPU, so that every device sees the same numbers
            rng = generator(config.seed, "noise", draw.epoch, draw.entry)
            shape = latents.shape[1:]
            noise.append(torch.randn(shape, generator=rng))
            levels.append(objective.draw_levels(config.objective, denoiser.prediction, 1, rng, shape))
            noise[-1] = objective.offset_noise(config.objective, noise[-1], rng)
        noised = objective.add_noise(
            denoiser, latents, self._to_device(torch.stack(noise)), self._to_device(torch.cat(levels))
        )
        noised = keep_given_parts(denoiser, batch, latents, noised)
        factor = self._to_device(batch.weight * self._role_weight(draws) / count)
        factor = objective.level_weight(config.objective, denoiser, noised) * factor
        mask = None if batch.mask is None else self._to_device(batch.mask)
        if batch.items[0].slider_ends:
            return self._sliding(batch, latents, noised, mask, factor, place)
        parts = conditioning_batches(denoiser, batch.items, latents, config.objective)
        items = batch.items if self._keeps_items else ()
        preserving = self._preserving(batch, latents, noised, factor, place)
        if len(parts) == 1:
            whole = MicroBatch(noised, parts[0].conditioning, mask, factor, place, tuple(among), items=items)
            return [whole, *preserving]
        return [
            *(
                MicroBatch(
                    _take(noised, part.items),
                    part.conditioning,
                    None if mask is None else mask[list(part.items)],
                    factor[list(part.items)],
                    place + (number << 60),
                    tuple(among[i] for i in part.items),
                    items=tuple(items[i] for i in part.items) if items else (),
                )
                for number, part in enumerate(parts)
            ),
            *preserving,
        ]

    def _sliding(
        self,
        batch: Batch,
        latents: Tensor,
        noised: objective.NoisyInput,
        mask: Tensor | None,
        factor: Tensor,
        place: int,
    ) -> list[MicroBatch]:
        """Of a slider's items, with what its ends are given."""

        def parts(items: Sequence[LoadedItem], of: Tensor) -> list[ConditioningBatch]:
            return conditioning_batches(self._denoiser, items, of, self._config.objective)

        found = []
        for number, part in enumerate(parts(batch.items, latents)):
            own = list(part.items)
            items = [batch.items[i] for i in own]
            positive, negative = (
                parts([replace(i, conditioning=i.slider_ends[end]) for i in items], latents[own])
                for end in (0, 1)
            )
            ends = SliderEnds(positive, negative, items[0].slider_guidance)
            taken = None if mask is None else mask[own]
            at = place + (number << 60)
            half = factor[own] / 2  # each end
            found.append(MicroBatch(_take(noised, own), part.conditioning, taken, half, at, (), slider=ends))
        return found

    def _preserving(
        self, batch: Batch, latents: Tensor, noised: objective.NoisyInput, factor: Tensor, place: int
    ) -> list[MicroBatch]:
        """Of the items that have a class: the same noisy latents with the captions in which the class stands."""
        weight = self._config.objective.preservation_weight
        own = [index for index, item in enumerate(batch.items) if item.of_class is not None]
        if not own or not weight:
            return []
        items = tuple(
            replace(item, conditioning=item.of_class) for item in batch.items if item.of_class is not None
        )
        parts = conditioning_batches(self._denoiser, items, latents[own], self._config.objective)
        return [
            MicroBatch(
                _take(noised, indices := [own[i] for i in part.items]),
                part.conditioning,
                None,  # where the item is masked, too
                factor[indices] * weight,
                place + (number << 60) + (1 << 80),
                (),
                preserves=True,
            )
            for number, part in enumerate(parts)
        ]

    def _role_weight(self, draws: list[SampleDraw]) -> Tensor:
        weight = self._config.objective.regularisation_weight
        roles = [self._store.items[d.item].role for d in draws]
        return torch.tensor([weight if role == "regularisation" else 1.0 for role in roles])

    def _to_device(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self._denoiser.device)


def conditioning_batches(
    denoiser: Denoiser, items: Sequence[LoadedItem], latents: Tensor, config: ObjectiveConfig
) -> list[ConditioningBatch]:
    """What forward takes for the items of a batch, on the device.

    latents: (B, C, [F,] h, w) on the device.
    """
    entries = [complete(item, denoiser, config) for item in items]
    if denoiser.takes_given_parts:
        for item, entry in zip(items, entries, strict=True):
            if item.noise_mask is not None and "denoise_mask" not in entry:
                entry["denoise_mask"] = item.noise_mask.expand(latents.shape[1:])[None]
    return [
        ConditioningBatch(part.items, map_tensors(part.conditioning, lambda t: to_device(t, denoiser.device)))
        for part in denoiser.batch_conditioning(entries, latents)
    ]


def keep_given_parts(
    denoiser: Denoiser, batch: Batch, latents: Tensor, noised: objective.NoisyInput
) -> objective.NoisyInput:
    """The same with the parts that are given as they are in the latents, for models that take them so."""
    if not denoiser.takes_given_parts or all(item.noise_mask is None for item in batch.items):
        return noised
    whole = torch.ones_like(batch.latents[0][:1])
    masks = torch.stack([whole if i.noise_mask is None else i.noise_mask for i in batch.items])
    masks = to_device(masks.to(latents.dtype), latents.device)
    return replace(noised, noisy=torch.lerp(latents, noised.noisy, masks))


def complete(item: LoadedItem, denoiser: Denoiser, config: ObjectiveConfig) -> ItemConditioning:
    """An item's conditioning with the model's further inputs, where the conditioning itself does not say it:
    guidance, the frame rate of a clip, and the sizes of Podell et al. 2023 (arXiv 2307.01952, section 2.2)."""
    found: ItemConditioning = {}
    if denoiser.guidance_distilled:
        found["guidance"] = config.guidance
    if item.frame_rate:
        found["frame_rate"] = item.frame_rate
    if family_is_told_sizes(denoiser.family) and not SIZES & item.conditioning.keys():
        if config.size_conditioning == "768":
            found |= {"width": 768, "height": 768}
        elif config.size_conditioning == "item" and (size := item.size) is not None:
            found |= {
                **{"width": size.width, "height": size.height},
                **{"crop_w": size.crop_left, "crop_h": size.crop_top},
                **{"target_width": size.target_width, "target_height": size.target_height},
            }
    return {**found, **item.conditioning}


SIZES = frozenset({"width", "height", "crop_w", "crop_h", "target_width", "target_height"})


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """From pinned memory the copy does not wait for the work that the device still has."""
    streams = streams_of(device)
    if streams is None or tensor.device.type != "cpu" or tensor.requires_grad:
        return tensor.to(device)
    pinned, copy = streams.pinned(tensor).copy_(tensor), torch.empty_like(tensor, device=device)
    streams.copy(copy, pinned, streams.current())
    return copy


def _take(noised: objective.NoisyInput, items: Sequence[int]) -> objective.NoisyInput:
    """Some items of a batch."""
    indices = list(items)
    return objective.NoisyInput(
        noisy=noised.noisy[indices],
        timestep=noised.timestep[indices],
        target=noised.target[indices],
        level=noised.level[indices],
    )
