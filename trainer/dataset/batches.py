"""The order in which items are seen: a pure function of the seed and the position.

Every batch holds items of one latent shape. An epoch shows every item `repeats` times, shuffled anew; it is planned
when it is reached, so a resumed run starts in the middle of one without replaying what came before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import KilnError
from ..rng import generator
from .encoded import EncodedItem, load_latent, load_text


class SampleDraw(NamedTuple):
    """One item shown once. Its random draws hang on (epoch, entry), so what an item is shown with does not depend
    on the batch size, on accumulation or on where a run was resumed."""

    item: int  # index into the dataset
    epoch: int
    entry: int  # place in the unshuffled epoch: an item with 3 repeats has 3 entries


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
        """What one batch shows."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return [SampleDraw(self._item_of[entry], epoch, entry) for entry in self._epoch(epoch)[place]]

    def _plan(self, epoch: int) -> list[list[int]]:
        draws = generator(self._seed, "order", epoch)
        batches: list[list[int]] = []
        for group in self._groups.values():
            shuffled = [group[i] for i in torch.randperm(len(group), generator=draws).tolist()]
            batches += [shuffled[i : i + self._batch_size] for i in range(0, len(shuffled), self._batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=draws).tolist()]


@dataclass(frozen=True)
class Batch:
    """What one batch of showings brings, batch first, on the CPU."""

    latents: Tensor  # (B, C, [F,] h, w)
    conditioning: dict[str, Tensor]
    weight: Tensor  # (B,) of each item's loss
    mask: Tensor | None = None  # (B, 1, [F,] h, w) in 0..1: where the loss counts; None: everywhere


@dataclass
class ItemStore:
    """Reads encoded items and keeps them in memory up to a limit; beyond it they are read again each time.

    Which augmented variant and which form of the caption a showing gets is drawn from the run's seed and the showing.
    Validation items always show their first variant and their whole caption.
    """

    items: Sequence[EncodedItem]
    seed: int = 0
    limit_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        self._kept: dict[Path, dict[str, Tensor]] = {}
        self._size = 0

    def load(self, showings: Sequence[SampleDraw]) -> Batch:
        """The tensors of one batch.

        Raises:
            KilnError: an encoded file is gone, or captions of one batch have different kinds of conditioning.
        """
        chosen = [self.choose(s) for s in showings]
        loaded = [self._read(latent, load_latent) for latent, _ in chosen]
        return Batch(
            latents=torch.stack([each["latent"] for each in loaded]),
            conditioning=stack_conditioning([self._read(text, load_text) for _, text in chosen]),
            weight=torch.tensor([self.items[s.item].loss_weight for s in showings]),
            mask=stack_masks(loaded),
        )

    def choose(self, showing: SampleDraw) -> tuple[Path, Path]:
        """The latent and the text that a showing gets."""
        item = self.items[showing.item]
        if item.role == "validation":
            return item.latent_path, item.text_path
        draws = generator(self.seed, "variant", showing.epoch, showing.entry)
        latent = item.latents[int(torch.randint(len(item.latents), (1,), generator=draws))]
        text = item.texts[int(torch.randint(len(item.texts), (1,), generator=draws))]
        dropped = float(torch.rand(1, generator=draws)) < item.caption_dropout
        return latent, item.empty_text if dropped and item.empty_text else text

    def _read(self, path: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
        if path in self._kept:
            return self._kept[path]
        loaded = read(path)
        size = sum(t.nbytes for t in loaded.values())
        if self._size + size <= self.limit_bytes:
            self._kept[path] = loaded
            self._size += size
        return loaded


def stack_masks(loaded: list[dict[str, Tensor]]) -> Tensor | None:
    """(B, 1, [F,] h, w); items without a mask count everywhere. None when no item has one."""
    if not any("mask" in each for each in loaded):
        return None
    return torch.stack([each.get("mask", torch.ones_like(each["latent"][:1])) for each in loaded])


def stack_conditioning(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch from single captions; shorter texts are padded with zero rows, as text encoders do."""
    names = conditionings[0].keys()
    if any(c.keys() != names for c in conditionings):
        raise KilnError(
            "The captions of one batch were encoded differently; use one text encoder for all items."
        )
    length = max(c["cross_attn"].shape[0] for c in conditionings)
    stacked = {}
    for name in names:
        rows = [c[name] for c in conditionings]
        if name == "cross_attn":
            rows = [torch.nn.functional.pad(r, (0, 0, 0, length - r.shape[0])) for r in rows]
        stacked[name] = torch.stack(rows)
    return stacked
