"""Items that are trained at several resolutions: each is an item of its own at every one that it can fill."""

from __future__ import annotations

import dataclasses
import re

from ..errors import KilnError, shortened
from ..parsers import split_list
from .buckets import BucketOptions, bucket_of
from .items import Dataset, Item

SMALLEST, LARGEST, MOST = 16, 4096, 8  # pixels, pixels, resolutions


def read_resolutions(text: str) -> list[int]:
    """The numbers of a text such as "768, 1024".

    Raises:
        KilnError: something else stands there, or too many.
    """
    parts = " ".join(split_list(text)).split()
    if not all(re.fullmatch(r"\d{1,5}", part) and SMALLEST <= int(part) <= LARGEST for part in parts):
        raise KilnError(
            f"more_resolutions is {shortened(text, 80)!r}; write numbers from {SMALLEST} to {LARGEST} with commas "
            "between, such as 768, 1024."
        )
    if len(parts) > MOST:
        raise KilnError(f"more_resolutions has {len(parts)} numbers; at most {MOST} are trained at.")
    return [int(part) for part in parts]


def at_resolutions(dataset: Dataset, options: BucketOptions, more: list[int]) -> Dataset:
    """The dataset with every item at each resolution that gives it another size; items held out for validation at the
    first one alone, so that their loss stays comparable.

    Args:
        options: their resolution comes first.
        more: further ones, in pixels.
    """
    if not more:
        return dataset
    items = [at for item in dataset.items for at in _sizes_of(item, options, more)]
    return dataclasses.replace(dataset, items=tuple(items))


def _sizes_of(item: Item, options: BucketOptions, more: list[int]) -> list[Item]:
    if item.role == "validation":
        return [item]
    first = bucket_of(item, options)
    found = {first: item}
    for resolution in more:
        at = dataclasses.replace(item, resolution=resolution)
        bucket = bucket_of(at, options)
        # A small picture that the first resolution enlarges gives less at a higher one, where it is not enlarged
        less = resolution >= options.resolution and bucket.width * bucket.height < first.width * first.height
        if not less:
            found.setdefault(bucket, at)
    return list(found.values())
