"""Several datasets in one, with weights and roles; and which items are held out for validation.

A weight says how often a set's items are trained on, compared with the others'. It becomes whole repeats (weights 1 and
0.5 are repeats 2 and 1), so that an epoch has exactly these proportions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..errors import KilnError
from .items import Dataset, Item, Role

FINEST = 10  # weights are rounded to this many parts: an epoch grows at most tenfold


@dataclass(frozen=True)
class Part:
    """One set of a mix."""

    dataset: Dataset
    weight: float  # of how often its items are trained on, > 0
    role: Role


def combine(parts: Sequence[Part], regularisation_loss_weight: float = 1.0) -> Dataset:
    """Mix datasets.

    Args:
        parts: at least one.
        regularisation_loss_weight: of the loss of items whose part is regularisation (prior preservation).

    Items that a part already holds out for validation stay held out.

    Raises:
        KilnError: a weight is too small, or nothing is left to train on.
    """
    items: list[Item] = []
    for part, repeats in zip(parts, whole_repeats([p.weight for p in parts]), strict=True):
        for item in part.dataset.items:
            # A role that an earlier node gave stays, unless this one gives another than the plain one
            role: Role = part.role if part.role != "subject" and item.role != "validation" else item.role
            plain = (
                {"augmentation": None, "caption_variation": None, "class_words": None}
                if role == "validation"
                else {}
            )
            newly = role == "regularisation" != item.role
            loss_weight = regularisation_loss_weight if newly else item.loss_weight
            items.append(
                dataclasses.replace(
                    item,
                    role=role,
                    loss_weight=loss_weight,
                    repeats=1 if role == "validation" else item.repeats * repeats,
                    **plain,  # type: ignore[arg-type]
                )
            )
    if all(i.role == "validation" for i in items):
        raise KilnError("Every item of the mix is for validation; give one set the role subject.")
    trigger = next((p.dataset.trigger_word for p in parts if p.dataset.trigger_word), "")
    sets = [p.dataset for p in parts]
    return Dataset(
        tuple(items),
        skipped=tuple(dict.fromkeys(reason for s in sets for reason in s.skipped)),
        unread=tuple(dict.fromkeys(path for s in sets for path in s.unread)),
        remarks=tuple(dict.fromkeys(remark for s in sets for remark in s.remarks)),
        trigger_word=trigger,
    )


def whole_repeats(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the proportion of the weights (rounded to tenths).

    Raises:
        KilnError: a weight is not above 0.
    """
    shares = [Fraction(w).limit_denominator(FINEST) for w in weights]
    if any(s <= 0 for s in shares):
        raise KilnError(f"A weight is {min(weights)}; use 0.1 or more, or disconnect the dataset.")
    common = math.lcm(*(s.denominator for s in shares))
    whole = [int(s * common) for s in shares]
    divisor = math.gcd(*whole)
    return [w // divisor for w in whole]


def hold_out(dataset: Dataset, share: float, folder: str, root: Path) -> Dataset:
    """Mark items as validation: those of a sub-folder, or else a share of all.

    The share is chosen by the files' contents: adding a file later moves few others, and equal files stay on one side.

    Raises:
        KilnError: the folder holds no item, or nothing would be left to train on.
    """
    if folder:
        held = {i for i, item in enumerate(dataset.items) if root / folder in item.path.parents}
        if not held:
            raise KilnError(f"The validation folder {folder!r} holds no usable image; check its name.")
    elif share > 0:
        kinds = sorted({item.facts.sha256 for item in dataset.items})
        chosen = set(kinds[: max(1, round(share * len(kinds)))])
        held = {i for i, item in enumerate(dataset.items) if item.facts.sha256 in chosen}
    else:
        return dataset
    if len(held) == len(dataset.items):
        raise KilnError("All items would be held out for validation and none trained on; hold out fewer.")
    items = (
        dataclasses.replace(item, role="validation", repeats=1) if i in held else item
        for i, item in enumerate(dataset.items)
    )
    return dataclasses.replace(dataset, items=tuple(items))
