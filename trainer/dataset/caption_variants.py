"""Captions that change from one showing to the next.

A caption is taken for a list of tags between commas. Its variants (the tags in other orders, the first ones kept in
place) are fixed by its text, so each is encoded once; the run's seed then draws one per showing, or the empty caption.
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
    """What may happen to a caption at each showing."""

    dropout: float = 0.0
    """Probability 0-1 of showing the item with an empty caption."""
    shuffle_tags: bool = False
    """Show the tags in one of several orders."""
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


def caption_variants(caption: str, play: CaptionVariation | None) -> list[str]:
    """The caption itself first, then its other orders without repetition; one alone where there is nothing to
    shuffle."""
    if play is None or not play.shuffle_tags:
        return [caption]
    tags = split_tags(caption)
    first, rest = tags[: play.keep_first], tags[play.keep_first :]
    found = {caption: None}  # a dict keeps the order
    for attempt in range(4 * play.variants):  # few tags have few orders
        if len(found) == play.variants or len(rest) < 2:
            break
        order = np.random.default_rng(derive_seed(0, "shuffle", attempt)).permutation(len(rest))
        found.setdefault(", ".join([*first, *(rest[i] for i in order)]), None)
    return list(found)
