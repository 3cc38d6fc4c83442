"""What is wrong with a dataset: pure functions over what the scan measured.

Figures are the tuning guide's: 20 items at least and 50-100 good, 512 x 512 pixels at least and 1024 good.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ..errors import KilnError
from .caption_variants import split_tags
from .items import Dataset, Item
from .pixels import shown

FEW_ITEMS, GOOD_ITEMS = 20, 50
SMALL_SIDE, GOOD_SIDE = 512, 1024
MUCH_LOST = 0.25  # share of an item's pixels, or of its control picture's
NEAR_BITS = 6  # of 64 bits of the perceptual hash may differ in a near-duplicate
NEAR_COLOUR = 8.0  # and this much of 0-255 in the mean colours
COMMON = frozenset("a an and at by for from in is it its of on or the this to with".split())  # noqa: SIM905


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one item."""

    item: int  # index into the dataset
    kind: str  # short: stands on the contact sheet
    text: str  # the finding in words
    severe: bool = False  # worth leaving out, rather than worth a look


def require_captions(dataset: Dataset) -> None:
    """Raise KilnError when most of the items that are trained on have no caption."""
    trained = [i for i in dataset.items if i.role != "validation"]
    silent = [i for i in trained if not i.caption.strip()]
    if len(silent) > len(trained) / 2:
        raise KilnError(
            f"{len(silent)} of {len(trained)} items have no caption (the first is {shown(Path(silent[0].path.name))}); "
            "write captions, put a trigger word in front with Caption Template, or switch without_captions on."
        )


def find_problems(dataset: Dataset, resolution: int = SMALL_SIDE) -> list[Problem]:
    """Everything found, in the order of the items. Training below 512 pixels asks for less."""
    items = dataset.items
    found = [
        *_picture_problems(items, min(SMALL_SIDE, resolution)),
        *_duplicates(items),
        *_caption_problems(items),
    ]
    return sorted(found, key=lambda p: (p.item, not p.severe))


def near_duplicates(items: Sequence[Item]) -> list[list[int]]:
    """Groups of two or more items that look alike, by index."""
    hashes = np.array([i.facts.phash for i in items], dtype=np.uint64)
    blank = bytes(48)
    colours = np.array(
        [np.frombuffer(bytes.fromhex(i.facts.colours) or blank, np.uint8) for i in items], np.float32
    )
    leader = list(range(len(items)))

    def lead(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    for start in range(0, len(items), 128):
        differing = hashes[start : start + 128, None] ^ hashes[None]
        bits = _BITS[differing.view(np.uint8).reshape(*differing.shape, 8)].sum(-1, dtype=np.uint8)
        for row, column in zip(*np.nonzero(bits <= NEAR_BITS), strict=True):
            one, other = start + int(row), int(column)
            if other > one and np.abs(colours[one] - colours[other]).mean() <= NEAR_COLOUR:
                leader[lead(other)] = lead(one)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(items)):
        groups[lead(index)].append(index)
    return [g for g in groups.values() if len(g) > 1]


def tag_counts(items: Sequence[Item]) -> Counter[str]:
    """How many captions have each tag (or each word, where captions are sentences)."""
    tags = [split_tags(i.caption) for i in items]
    listed = [t for t in tags if t]
    if listed and sum(map(len, listed)) < 2 * len(listed):
        tags = [words_of(i.caption) for i in items]
    return Counter(tag for each in tags for tag in dict.fromkeys(t.casefold() for t in each))


def words_of(caption: str) -> list[str]:
    """Words in lower case, without the commonest ones."""
    return [w for w in re.findall(r"[\w'-]+", caption.casefold()) if w not in COMMON]


def fused_words(items: Sequence[Item], trigger: str) -> tuple[list[str], list[str]]:
    """What the trigger word cannot be told apart from.

    Returns:
        Words that stand beside it in 9 of 10 captions and more, and words that contain it ("zorbs").
    """
    word = trigger.casefold().strip()
    with_it = [set(words_of(i.caption)) for i in items if word and word in i.caption.casefold()]
    parts = set(words_of(word))
    beside = Counter(w for words in with_it for w in words if w not in parts and word not in w)
    always = [w for w in sorted(beside) if len(with_it) >= 5 and beside[w] >= 0.9 * len(with_it)]
    containing = {w for words in with_it for w in words if word in w and w not in parts}
    return always, sorted(containing)


def _picture_problems(items: Sequence[Item], side: int) -> Iterator[Problem]:
    for index, item in enumerate(items):
        facts = item.facts
        size = f"{facts.width}x{facts.height}"
        if facts.width * facts.height < (side // 2) ** 2:
            yield Problem(index, "tiny", f"only {size} pixels", severe=True)
        elif facts.width * facts.height < side**2:
            yield Problem(index, "small", f"{size} pixels, below {side}x{side}")
        if item.masked and item.kept == 0:
            yield Problem(index, "empty mask", "its mask keeps nothing", severe=True)
        if item.mask_is_stretched:
            mask = f"{item.mask_size[0]}x{item.mask_size[1]}"
            text = f"its mask has another shape, {mask} pixels instead of {size}, and is stretched"
            yield Problem(index, "stretched mask", text)
        for control in item.controls:
            if (lost := control.lost(facts)) > MUCH_LOST:
                other = f"{control.facts.width}x{control.facts.height}"
                text = (
                    f"its control picture {control.path.name} has another shape, {other} pixels instead of {size}, and "
                    f"{lost:.0%} of it is cut off"
                )
                yield Problem(index, "control cropped", text)
        held = f"{round(facts.width * facts.detail)}x{round(facts.height * facts.detail)}"
        if facts.detail == 0:
            yield Problem(
                index, "blurred", "blurred or plain: no sharp edge at an eighth of its size", severe=True
            )
        elif facts.detail <= 0.3 and min(facts.width, facts.height) * facts.detail < side:
            yield Problem(
                index, "blurred", f"blurred or enlarged: {size} pixels, detail of {held}", severe=True
            )
        elif facts.detail <= 0.6 and min(facts.width, facts.height) * facts.detail < side:
            yield Problem(index, "upscaled", f"soft or enlarged: {size} pixels, detail of {held}")


def _duplicates(items: Sequence[Item]) -> Iterator[Problem]:
    for group in near_duplicates(items):
        for index in group[1:]:
            same = items[index].facts.sha256 == items[group[0]].facts.sha256
            first = items[group[0]].path.name
            text = f"the same file as {first}" if same else f"nearly the same as {first}"
            split = {items[index].role, items[group[0]].role}
            leak = (
                "; one is trained on and the other validates"
                if "validation" in split and len(split) > 1
                else ""
            )
            yield Problem(index, f"like {group[0] + 1}", f"{text}{leak}", severe=same)


def _caption_problems(items: Sequence[Item]) -> Iterator[Problem]:
    lengths = [len(words_of(i.caption)) for i in items if i.caption]
    middle = median(lengths) if lengths else 0
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        if not item.caption:
            yield Problem(index, "no caption", "no caption")
            continue
        same = first.setdefault(item.caption.casefold(), index)
        if same != index and items[same].facts.sha256 != item.facts.sha256:
            yield Problem(index, f"caption of {same + 1}", f"the same caption as {items[same].path.name}")
        length = len(words_of(item.caption))
        if abs(length - middle) > 8 and not middle / 3 <= length <= middle * 3:
            yield Problem(
                index, "caption length", f"{length} words in the caption, {middle:.0f} are usual here"
            )


_BITS = np.array([bin(n).count("1") for n in range(256)], np.uint8)
