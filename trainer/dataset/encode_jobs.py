"""What has to be encoded for an item, and where each of it lies: files named by the hash of all that determines them.

An address is the same as ever for what an earlier version would have encoded in the same way: its parts only grow where
something new is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import KilnError
from .buckets import Bucket, BucketOptions, bucket_of
from .caption_variants import caption_variants
from .encoded import FORMAT, Encoder, address_of, cache_path
from .items import Control, Item
from .video import MIDDLE, stride_of


@dataclass(frozen=True)
class Job:
    """One latent to make."""

    item: Item
    bucket: Bucket
    variant: int
    path: Path
    guide: Path | None  # what of its pixels is given to the model


def variants_of(item: Item) -> int:
    """How many latents an item has."""
    return item.augmentation.variants if item.augmentation else 1


def job_of(item: Item, options: BucketOptions, variant: int, encoder: Encoder, cache: Path) -> Job:
    """One variant of an item.

    Raises:
        KilnError: what the model is to be given of it cannot be made.
    """
    bucket = bucket_of(item, options)
    parts = [item.facts.sha256, repr(tuple(bucket)), encoder.image_fingerprint]
    if bucket.frames > 1 or item.facts.frames > 1:
        parts += [f"fps {options.fps}", *_own_times(item, bucket, options.fps)]
    if item.masked:
        parts.append(f"mask {item.mask_sha256 or 'alpha'}")
    if item.augmentation is not None:
        parts += [_drawn_from(item), f"variant {variant}"]
    guide = None
    if way := encoder.guide_of(item, bucket.frames):
        guide = cache_path(cache / "guides", address_of(FORMAT, [*parts, way, *_controls_id(item)]))
    return Job(item, bucket, variant, cache_path(cache / "latents", address_of(FORMAT, parts)), guide)


def _controls_id(item: Item) -> list[str]:
    """A clip of another frame rate than its target was read by number once."""
    return [
        c.facts.sha256 + (" at the target's times" if _at_other_times(item, c) else "") for c in item.controls
    ]


def _at_other_times(item: Item, control: Control) -> bool:
    clips = min(item.facts.frames, control.facts.frames) > 1
    return clips and bool(item.facts.fps and control.facts.fps) and not control.same_rate(item.facts)


def _pictures_id(item: Item, job: Job, encoder: Encoder, way: str) -> list[str]:
    """Of what a text encoder sees beside a caption; the VAE makes references of it."""
    cut = f"{item.facts.width}x{item.facts.height}"  # the part under the item
    drawn = [] if item.augmentation is None else [_drawn_from(item), item.facts.sha256]
    return [way, encoder.image_fingerprint, repr(tuple(job.bucket)), cut, *_controls_id(item), *drawn]


def _own_times(item: Item, bucket: Bucket, fps: float) -> list[str]:
    """What is not as it once was for every clip: a piece of the middle, frames that are never repeated, by number."""
    slow = bucket.frames > 1 and stride_of(item.facts.fps, fps) < 1
    own = "own times" if fps and (slow or not item.facts.even) else ""
    return [part for part in (own, "" if item.place == MIDDLE else f"place {item.place}") if part]


def _drawn_from(item: Item) -> str:
    """The augmentation without the number of variants: asking for more keeps the first ones."""
    a = item.augmentation
    assert a is not None
    return repr((a.crop_min_scale, a.horizontal_flip, a.color_jitter, a.noise_min, a.noise_max, a.seed))


def class_captions(item: Item) -> list[str]:
    """Of every form of the caption, those with a class in the trigger word's place, as many for each."""
    words = item.class_words
    if words is None:
        return []
    forms = caption_variants(item.caption, item.caption_variation)
    # A shuffle may have torn a trigger word with a comma in it
    return [text for form in forms for text in words.captions(form) or words.captions(item.caption)]


def captions_of(
    item: Item, job: Job, encoder: Encoder, cache: Path
) -> list[tuple[Path, tuple[str, Job | None]]]:
    """Every text of an item by its file, with the job whose pictures the text encoder looks at: its captions,
    those with a class in the trigger word's place (`class_captions`), and the empty one where it may be shown."""
    wanted = [*caption_variants(item.caption, item.caption_variation), *class_captions(item)]
    if item.caption_variation is not None and item.caption_variation.dropout:
        wanted.append("")
    controls, itself = encoder.text_sees_controls(item), encoder.text_sees_first_frame(item)
    seen = bool(controls or itself)
    if seen and variants_of(item) > 1:
        raise KilnError(
            f"The text encoder looks at the pictures of {item.path.name}, of which there are {variants_of(item)} "
            "variants; set variants to 1 on Augment Dataset."
        )
    pictures = _pictures_id(item, job, encoder, controls) if controls else []
    if itself:
        pictures += [itself, job.path.stem]  # the latent's address: all that its pixels depend on
    return [
        (cache_path(cache / "texts", _text_address(text, encoder, pictures)), (text, job if seen else None))
        for text in wanted
    ]


def _text_address(text: str, encoder: Encoder, pictures: list[str]) -> str:
    reading = encoder.reading_of(text)
    return address_of(FORMAT, [text, encoder.text_fingerprint, *([reading] if reading else []), *pictures])
