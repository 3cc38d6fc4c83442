"""A dataset as nodes pass it on: immutable, without pixels.

Each node (captions, augmentation, roles) returns changed items; pixels are read when they are encoded. `scan.py` makes
a dataset from a folder.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .augment import Augmentation
from .caption_variants import CaptionVariation
from .class_words import ClassWords
from .facts import Facts
from .remarks import unread_sentences
from .video import MIDDLE

SAME_SHAPE = 0.02
"""Relative difference of width / height up to which two shapes are one."""

SAME_RATE = 0.002
"""Relative difference of frame rates up to which two are one: 24 and 23.976 are."""

Role = Literal["subject", "regularisation", "validation"]
"""What an item is for: learned, kept as it was (prior preservation), or only looked at for the validation loss."""


@dataclass(frozen=True)
class Control:
    """A picture or clip that an item is made from."""

    path: Path
    facts: Facts

    def lost(self, target: Facts) -> float:
        """Share 0-1 of it that is cut off, since it has another shape than its target."""
        across, down = self.facts.width * target.height, self.facts.height * target.width
        return 1 - min(across, down) / max(across, down)

    def same_rate(self, target: Facts) -> bool:
        """Whether a clip shows its frames when its target does, so that they are counted alike."""
        rates = self.facts.fps, target.fps
        return self.facts.even == target.even and abs(rates[0] - rates[1]) <= SAME_RATE * max(rates)


@dataclass(frozen=True)
class Item:
    """One still or clip with its caption, mask and role."""

    path: Path
    facts: Facts
    caption: str = ""
    repeats: int = 1  # samples of it in an epoch
    role: Role = "subject"
    loss_weight: float = 1.0  # of its loss in the step's mean
    fields: tuple[tuple[str, str], ...] = ()  # what sidecars say of it, for caption templates
    folder: str = ""  # name of its folder, without a leading number of repeats
    mask: Path | None = None  # a still whose white parts count for the loss
    mask_sha256: str = ""
    mask_kept: float = 1.0  # share 0-1 of the mask file that counts
    mask_size: tuple[int, int] = (0, 0)  # width and height of the mask file, upright; 0: not known
    use_alpha: bool = False  # the image's own opaque parts are the mask
    augmentation: Augmentation | None = None
    caption_variation: CaptionVariation | None = None
    class_words: ClassWords | None = None  # what the trigger word is one of, which is kept as it was
    controls: tuple[Control, ...] = ()  # in the order in which the model gets them
    resolution: int = 0  # it is trained at; 0: that of all items
    place: float = MIDDLE  # of a clip: where the piece lies that is trained on, 0 its start, 1 its end
    root: Path | None = None  # the dataset's folder; None: it comes from the graph

    @property
    def kept(self) -> float:
        """Share 0-1 of it that counts for the loss."""
        return self.mask_kept if self.mask is not None else self.facts.kept if self.use_alpha else 1.0

    @property
    def mask_is_stretched(self) -> bool:
        """The mask file has another shape than the picture, and more than rounding is between them."""
        (width, height), facts = self.mask_size, self.facts
        across, down = width * facts.height, height * facts.width
        return self.mask is not None and abs(across - down) > SAME_SHAPE * max(across, down)

    @property
    def masked(self) -> bool:
        return self.mask is not None or self.use_alpha


@dataclass(frozen=True)
class Dataset:
    """Items in their natural order, and a sentence for everything beside them that is not used."""

    items: tuple[Item, ...]
    skipped: tuple[str, ...] = ()  # bad files, and whatever else must be mended: the reasons
    unread: tuple[Path, ...] = ()  # files of kinds that are not read
    remarks: tuple[str, ...] = ()  # what may not be as it was meant
    trigger_word: str = ""  # set by the caption template
    bad: tuple[tuple[Path, str], ...] = ()  # pictures and clips of the folder that are no items, and why

    def left_out(self) -> list[str]:
        """A sentence for each bad file and each kind of files that is not read."""
        return [*self.skipped, *unread_sentences(self.unread)]

    def describe(self) -> str:
        """What was found, for the node's text."""
        captioned = sum(bool(i.caption) for i in self.items)
        clips = sum(i.facts.frames > 1 for i in self.items)
        widths, heights = [i.facts.width for i in self.items], [i.facts.height for i in self.items]
        stills = len(self.items) - clips
        kinds = f"{stills} images and {clips} clips" if clips else f"{stills} images"
        lines = [
            f"{kinds}, {captioned} with captions",
            f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)} pixels",
        ]
        masked = sum(i.masked for i in self.items)
        if masked:
            files = sum(i.mask is not None for i in self.items)
            where = f"{files} from files, {masked - files} from transparency"
            if files in (0, masked):
                where = f"{masked} from files" if files else f"{masked} from transparency"
            lines.append(f"{masked} with a mask: {where}")
        kept = sum(i.class_words is not None for i in self.items)
        if kept:
            lines.append(f"{kept} with a class that the model keeps as it was")
        paired = sum(bool(i.controls) for i in self.items)
        if paired:
            lines.append(f"{paired} with control pictures")
        roles = Counter(i.role for i in self.items)
        if set(roles) != {"subject"}:
            lines.append(", ".join(f"{count} {role}" for role, count in roles.items()))
        notes = [f"note: {remark}" for remark in (*unread_sentences(self.unread), *self.remarks)]
        return "\n".join(lines + [f"skipped: {reason}" for reason in self.skipped] + notes)

    def proportions(self) -> str:
        """How the samples of an epoch are divided among the roles, in words."""
        trained = [i for i in self.items if i.role != "validation"]
        total = sum(i.repeats for i in trained)
        samples: Counter[str] = Counter()
        for item in trained:
            samples[item.role] += item.repeats
        shares = ", ".join(f"{count / total:.0%} {role}" for role, count in samples.items())
        return f"{total} samples in an epoch: {shares}"

    def with_captions(self, captions: list[str], trigger_word: str = "") -> Dataset:
        """The same items with other captions, one each."""
        changed = (dataclasses.replace(i, caption=c) for i, c in zip(self.items, captions, strict=True))
        return dataclasses.replace(self, items=tuple(changed), trigger_word=trigger_word or self.trigger_word)

    def with_caption_variation(self, variation: CaptionVariation) -> Dataset:
        """Captions that vary from sample to sample; validation items keep theirs."""
        return self._change_trained(caption_variation=variation)

    def with_class_words(self, words: ClassWords | None) -> Dataset:
        """What the trigger word is one of; the model keeps its answer to that. Validation items have none."""
        return self._change_trained(class_words=words)

    def with_augmentation(self, augmentation: Augmentation) -> Dataset:
        """Pixels that are encoded in several variants; validation items stay as they are."""
        return self._change_trained(augmentation=augmentation)

    def _change_trained(self, **values: object) -> Dataset:
        changed = (
            i if i.role == "validation" else dataclasses.replace(i, **values)  # type: ignore[arg-type]
            for i in self.items
        )
        return dataclasses.replace(self, items=tuple(changed))
