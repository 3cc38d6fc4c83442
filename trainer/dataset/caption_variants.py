"""Captions that change each time an item is trained on.

A caption is taken for a list of tags between commas. Its variants (the tags in other orders, the first ones kept in
place) are fixed by its text, so each is encoded once; the run's seed then draws one per sample, or the empty caption.
The empty caption at times is what classifier-free guidance relies on (Ho & Salimans 2022, arXiv 2207.12598).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..errors import KilnError
from ..rng import derive_seed

COMMAS = re.compile("[,\uff0c]")  # the full-width comma too, as Chinese keyboards type it


@dataclass(frozen=True, kw_only=True)
class CaptionVariation:
    """How a caption varies from sample to sample."""

    dropout: float = 0.0
    """Probability 0-1 that a sample has the empty caption."""
    shuffle_tags: bool = False
    """Each sample has the tags in one of several orders."""
    keep_first: int = 1
    """Tags at the start that stay where they are: the trigger word, for example."""
    variants: int = 8
    """Orders encoded per caption, the original among them."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise KilnError(f"Caption dropout is {self.dropout}; it is a probability from 0 to 1.")
        if self.variants < 1 or self.keep_first < 0:
            raise KilnError("Caption variants must be at least 1 and keep_first at least 0.")


def split_tags(caption: str) -> list[str]:
    """The parts between commas, without empty ones."""
    return [tag for part in COMMAS.split(caption) if (tag := part.strip())]


def caption_variants(caption: str, variation: CaptionVariation | None) -> list[str]:
    """The caption itself first, then its other orders without repetition; one alone where there is nothing to
    shuffle."""
    if variation is None or not variation.shuffle_tags:
        return [caption]
    tags = split_tags(caption)
    first, others = tags[: variation.keep_first], tags[variation.keep_first :]
    variants = {caption: None}  # a dict keeps the order
    for attempt in range(4 * variation.variants):  # few tags have few orders
        if len(variants) == variation.variants or len(others) < 2:
            break
        order = np.random.default_rng(derive_seed(0, "shuffle", attempt)).permutation(len(others))
        variants.setdefault(", ".join([*first, *(others[i] for i in order)]), None)
    return list(variants)
