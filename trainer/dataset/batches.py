"""The order in which items are drawn: a pure function of the seed and the position.

Every batch holds items of one latent shape. An epoch draws every item `repeats` times, shuffled anew; it is planned
when it is reached, so a resumed run starts in the middle of one without replaying what came before.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning import ItemConditioning
from ..rng import generator
from .encoded import NOISE_MASK, EncodedItem, PixelSize, unpack_text
from .read_ahead import FileReader


class SampleDraw(NamedTuple):
    """One item, drawn once. Its random numbers depend on (epoch, entry) alone: not on the batch size, on accumulation
    or on where a run was resumed."""

    item: int  # index into the dataset
    epoch: int
    entry: int  # index in the unshuffled epoch: an item with 3 repeats has 3 entries


def steps_of(epochs: float, items: Sequence[EncodedItem], batch_size: int, accumulation: int) -> int:
    """How many steps show every item that is trained on so many times, repeats counted; at least 1.

    Args:
        batch_size: items of a micro-batch, over all processes.
        accumulation: micro-batches of a step.
    """
    order = order_of([i for i in items if i.role != "validation"], batch_size, seed=0)
    return max(1, math.ceil(epochs * order.batches_per_epoch / accumulation))


def order_of(items: Sequence[EncodedItem], batch_size: int, seed: int) -> BatchOrder:
    """The order in which these items are trained on; batch_size is over all processes."""
    return BatchOrder([i.shape for i in items], [i.repeats for i in items], batch_size, seed)


class BatchOrder:
    """Batches by number: 0, 1, 2, ... without end."""

    def __init__(
        self, shapes: Sequence[Hashable], repeats: Sequence[int], batch_size: int, seed: int
    ) -> None:
        """shapes and repeats: one per item."""
        self._batch_size, self._seed = batch_size, seed
        self._item_of = [index for index, times in enumerate(repeats) for _ in range(times)]
        self._groups: dict[Hashable, list[int]] = defaultdict(list)
        for entry, index in enumerate(self._item_of):
            self._groups[shapes[index]].append(entry)
        # ceil: the last batch of a shape may be smaller; no item is ever left out
        self.batches_per_epoch = sum(-(-len(g) // batch_size) for g in self._groups.values())
        self._epoch = lru_cache(maxsize=2)(self._plan)

    def batch(self, number: int) -> list[SampleDraw]:
        """The draws of one batch."""
        epoch, index = divmod(number, self.batches_per_epoch)
        return [SampleDraw(self._item_of[entry], epoch, entry) for entry in self._epoch(epoch)[index]]

    def _plan(self, epoch: int) -> list[list[int]]:
        draws = generator(self._seed, "order", epoch)
        batches: list[list[int]] = []
        for group in self._groups.values():
            shuffled = [group[i] for i in torch.randperm(len(group), generator=draws).tolist()]
            batches += [shuffled[i : i + self._batch_size] for i in range(0, len(shuffled), self._batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=draws).tolist()]


@dataclass(frozen=True)
class LoadedItem:
    """What an item is shown with, besides its pixels."""

    conditioning: ItemConditioning
    size: PixelSize | None  # of the pixels; None where they are not known
    frame_rate: float  # frames per second; 0 for a still, or where it is not known
    noise_mask: Tensor | None = (
        None  # (1, [F,] h, w) in 0..1, of a graph's latent: 0 where it is given, not noised
    )
    of_class: ItemConditioning | None = None  # the same with a class in the trigger word's place
    slider_ends: tuple[ItemConditioning, ...] = ()  # what strength 1 and -1 of a slider make of it
    slider_guidance: float = 0.0  # times the way between them
    words: str | None = None  # the caption; None where the conditioning is not of a text alone


@dataclass(frozen=True)
class Batch:
    """Items of one latent shape, batch first, on the CPU."""

    latents: Tensor  # (B, C, [F,] h, w)
    items: tuple[LoadedItem, ...]  # B
    weight: Tensor  # (B,) of each item's loss
    mask: Tensor | None = None  # (B, 1, [F,] h, w) in 0..1: where the loss counts; None: everywhere


class ItemStore:
    """Reads encoded items and keeps them in memory up to a limit, captions without their padding; beyond it they are
    read again each time.

    Which augmented variant and which form of the caption a draw gets depends on the run's seed and the draw alone.
    Validation items always have their first variant and their whole caption.
    """

    def __init__(self, items: Sequence[EncodedItem], seed: int = 0, limit_bytes: int = 1 << 30) -> None:
        self.items, self.seed = items, seed
        self.reader = FileReader(limit_bytes)

    def read_ahead(self, draws: Sequence[SampleDraw]) -> None:
        """Begin to read what these draws need, on another thread."""
        self.reader.read_ahead(path for draw in draws for path in (*self.choose(draw), *self._beside(draw)))

    def load(self, draws: Sequence[SampleDraw]) -> Batch:
        """The tensors of one batch.

        Raises:
            KilnError: an encoded file is gone.
        """
        loaded: list[dict[str, Tensor]] = []
        items = []
        for draw in draws:
            item = self.items[draw.item]
            latent, text, *guide = self.choose(draw)
            loaded.append(self.reader.get(latent).tensors)
            size = item.sizes[item.latents.index(latent)] if item.sizes else None
            noise_mask = loaded[-1].get("mask") if item.noise_mask else None
            conditioning = unpack_text(text, self.reader.get(text))
            class_text = self.class_text(draw)
            of_class = None if class_text is None else unpack_text(class_text, self.reader.get(class_text))
            for path in guide:
                given = unpack_text(path, self.reader.get(path))
                noise_mask = given.pop(NOISE_MASK, None)
                conditioning.update(given)
                if of_class is not None:
                    of_class.update(given)
                if noise_mask is not None:  # what is given is not learned
                    mask = loaded[-1].get("mask", torch.ones_like(noise_mask))
                    loaded[-1] = {**loaded[-1], "mask": mask * noise_mask}
            items.append(
                LoadedItem(
                    conditioning,
                    size,
                    item.frame_rate,
                    noise_mask,
                    of_class,
                    self._ends(item, text),
                    item.slider_guidance,
                    _words_of(item, text),
                )
            )
        return Batch(
            latents=torch.stack([each["latent"] for each in loaded]),
            items=tuple(items),
            weight=torch.tensor([self.items[d.item].loss_weight for d in draws]),
            mask=stack_masks(loaded),
        )

    def choose(self, draw: SampleDraw) -> tuple[Path, ...]:
        """The latent, the text and, where it has one, the guide that a draw gets."""
        item = self.items[draw.item]
        if item.role == "validation":
            return item.latent_path, item.text_path, *item.guides[:1]
        draws = generator(self.seed, "variant", draw.epoch, draw.entry)
        latent = item.latents[int(torch.randint(len(item.latents), (1,), generator=draws))]
        text = item.texts[int(torch.randint(len(item.texts), (1,), generator=draws))]
        dropped = float(torch.rand(1, generator=draws)) < item.caption_dropout
        text = item.empty_text if dropped and item.empty_text else text
        if not item.guides or float(torch.rand(1, generator=draws)) < item.guide_dropout:
            return latent, text
        return latent, text, item.guides[item.latents.index(latent)]

    def _ends(self, item: EncodedItem, text: Path) -> tuple[ItemConditioning, ...]:
        return tuple(unpack_text(path, self.reader.get(path)) for path in _slider_ends(item, text))

    def _beside(self, draw: SampleDraw) -> Iterator[Path]:
        """What a draw needs beside what `choose` gives."""
        if class_text := self.class_text(draw):
            yield class_text
        yield from _slider_ends(self.items[draw.item], self.choose(draw)[1])

    def class_text(self, draw: SampleDraw) -> Path | None:
        """The text that `choose` gives, its trigger word replaced by one of the classes; None for items without. A
        sample whose caption is dropped has one too."""
        item = self.items[draw.item]
        if not item.class_texts or item.role == "validation":
            return None
        draws = generator(self.seed, "variant", draw.epoch, draw.entry)
        torch.randint(len(item.latents), (1,), generator=draws)  # as choose draws
        text = int(torch.randint(len(item.texts), (1,), generator=draws))
        classes = len(item.class_texts) // len(item.texts)
        draws = generator(self.seed, "class", draw.epoch, draw.entry)
        return item.class_texts[text * classes + int(torch.randint(classes, (1,), generator=draws))]


def _slider_ends(item: EncodedItem, text: Path) -> tuple[Path, ...]:
    """Of one of its texts."""
    place = 2 * item.texts.index(text) if item.slider_ends else 0
    return item.slider_ends[place : place + 2]


def _words_of(item: EncodedItem, text: Path) -> str | None:
    """What that file of the item was encoded from."""
    if not item.words:
        return None
    return item.words[item.texts.index(text)] if text in item.texts else ""


def stack_masks(loaded: list[dict[str, Tensor]]) -> Tensor | None:
    """(B, 1, [F,] h, w); items without a mask count everywhere. None when no item has one."""
    if not any("mask" in each for each in loaded):
        return None
    return torch.stack([each.get("mask", torch.ones_like(each["latent"][:1])) for each in loaded])
