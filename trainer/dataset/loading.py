"""An item's pixels at its training size, one variant of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import KilnError
from .augment import augment, crop_of
from .buckets import Bucket
from .files import VIDEO_ENDINGS, ending
from .items import Control, Item
from .pixels import flatten, is_clip, open_still, read_mask, read_pixels, shown
from .video import MIDDLE, pick_frames, pick_times, read_frames, read_times


@dataclass(frozen=True)
class Pixels:
    """What the VAE gets, and where the loss counts."""

    frames: np.ndarray  # (F, H, W, 3) fp32 in 0..1
    mask: np.ndarray | None  # (H, W) fp32 in 0..1


def load_pixels(item: Item, bucket: Bucket, fps: float, variant: int = 0) -> Pixels:
    """Read, resize and crop an item, and augment it where it asks for that.

    Args:
        item: a still or clip.
        bucket: its training size.
        fps: frame rate that clips are trained at; 0 takes every frame.
        variant: which of its augmented variants.

    Raises:
        KilnError: the file cannot be read any more.
    """
    settings = item.augmentation
    read_at = bucket if settings is None else _with_room(item, bucket, settings.room)
    frames, mask = _read(item, read_at, bucket.frames, fps)
    if settings is None:
        return Pixels(frames.astype(np.float32) / 255, mask)
    changed, changed_mask = augment(
        torch.from_numpy(frames),
        None if mask is None else torch.from_numpy(mask),
        (bucket.width, bucket.height),
        settings,
        _variant(item, variant),
    )
    return Pixels(changed.numpy(), None if changed_mask is None else changed_mask.numpy())


def load_controls(item: Item, bucket: Bucket, fps: float, variant: int = 0) -> list[np.ndarray]:
    """An item's control pictures as it is itself resized, cropped and flipped; their colours stay.

    Returns:
        (F, H, W, 3) fp32 in 0..1 for each; F is 1 for a still.

    Raises:
        KilnError: a file cannot be read any more, or a clip is shorter than its target.
    """
    settings = item.augmentation
    read_at = bucket if settings is None else _with_room(item, bucket, settings.room)
    found = []
    for control in item.controls:
        frames = _read_control(item, control, read_at, bucket.frames, fps)
        if settings is None:
            found.append(frames.astype(np.float32) / 255)
            continue
        moved = replace(settings, color_jitter=0.0, noise_min=0.0, noise_max=0.0)
        size = (bucket.width, bucket.height)
        changed, _ = augment(torch.from_numpy(frames), None, size, moved, _variant(item, variant))
        found.append(changed.numpy())
    return found


def _read_control(item: Item, control: Control, size: Bucket, frames: int, fps: float) -> np.ndarray:
    """Frames (F, H, W, 3) uint8 of the part that lies under the target's."""
    target, box = item.facts, (size.width, size.height)

    def cut(picture: Image.Image) -> np.ndarray:
        scale = min(picture.width / target.width, picture.height / target.height)
        under = (max(1, round(target.width * scale)), max(1, round(target.height * scale)))
        return np.asarray(crop_to(crop_to(picture, under), box))

    if control.facts.frames == 1:
        if ending(control.path.name) in VIDEO_ENDINGS:
            image = read_frames(control.path, [0], lambda picture: picture)[0]
        else:
            image = flatten(open_still(control.path)[0])
        return cut(image)[None].copy()
    known = bool(control.facts.fps and target.fps)
    if not known or target.frames == 1 or control.same_rate(target):
        if control.facts.frames < target.frames:
            raise KilnError(
                f"The control clip {shown(control.path)} has {control.facts.frames} frames and {shown(item.path)} "
                f"{target.frames}; make it as long as its target."
            )
        steered = replace(item, path=control.path, facts=replace(control.facts, frames=target.frames))
        return np.stack(_read_clip(steered, frames, fps, cut))
    if control.facts.seconds + 1 / control.facts.fps < target.seconds:
        raise KilnError(
            f"The control clip {shown(control.path)} is {control.facts.seconds:.2f} s long and {shown(item.path)} "
            f"{target.seconds:.2f} s; make it as long as its target."
        )
    nearest = 0.5 / control.facts.fps if control.facts.even else 0.0
    return np.stack(read_times(control.path, [t + nearest for t in _times(item, frames, fps)], cut))


def _times(item: Item, frames: int, fps: float) -> list[float]:
    """When the frames stand that are trained on, in seconds from the clip's first frame on; its rate is known."""
    facts = item.facts
    if _by_number(item, fps):
        return [n / facts.fps for n in pick_frames(facts.frames, facts.fps, frames, fps, item.place)]
    return pick_times(facts.frames, facts.fps, frames, fps, item.place)


def _by_number(item: Item, fps: float) -> bool:
    """Whether a clip's frames are counted; else their time stamps are read."""
    facts = item.facts
    return not facts.fps or not fps or (facts.even and item.place == MIDDLE)


def crop_offset(item: Item, bucket: Bucket, variant: int = 0) -> tuple[int, int]:
    """What load_pixels cuts off an item at the left and at the top, in pixels of its training size; after a flip the
    left is that of the flipped picture."""
    settings, facts = item.augmentation, item.facts
    read_at = bucket if settings is None else _with_room(item, bucket, settings.room)
    scale = max(read_at.width / facts.width, read_at.height / facts.height)
    left, top = (facts.width * scale - read_at.width) / 2, (facts.height * scale - read_at.height) / 2
    if settings is not None:  # the second cut lies in the first, which is in the middle
        size = (bucket.width, bucket.height)
        more_left, more_top, factor = crop_of(
            (read_at.width, read_at.height), size, settings, _variant(item, variant)
        )
        left, top = (left + more_left) * factor, (top + more_top) * factor
    return round(left), round(top)


def _variant(item: Item, variant: int) -> tuple[int, int]:
    """The numbers that tell this variant's draws from all others."""
    return int(item.facts.sha256[:8] or "0", 16), variant


def crop_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to cover `size` (width, height) and cut the middle out."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def read_thumbnail(path: Path, frames: int, side: int) -> Image.Image:
    """A small RGB picture of a still, or of a clip's middle frame, for contact sheets.

    Raises:
        KilnError: the file cannot be read.
    """
    if frames > 1 or is_clip(path):
        image = read_frames(path, [frames // 2], lambda picture: picture)[0]
    else:
        image = read_pixels(path, at_least=side)
    image.thumbnail((side, side), Image.Resampling.BOX)
    return image


def _read(item: Item, size: Bucket, frames: int, fps: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (F, H, W, 3) uint8 and mask (H, W), both cut to `size`."""
    box = (size.width, size.height)
    facts = item.facts
    if facts.frames > 1:
        cut = _read_clip(item, frames, fps, lambda picture: np.asarray(crop_to(picture, box)))
        mask = read_mask(item.mask).resize((facts.width, facts.height)) if item.mask else None
        return np.stack(cut), _as_mask(mask, box)
    if ending(item.path.name) in VIDEO_ENDINGS:  # a clip of one frame is a still
        image = read_frames(item.path, [0], lambda picture: picture)[0]
    else:
        image = open_still(item.path)[0]
    mask = read_mask(item.mask) if item.mask else None
    if mask is None and item.use_alpha and image.mode == "RGBA":
        mask = image.getchannel("A")
    if mask is not None and mask.size != image.size:
        mask = mask.resize(image.size)
    return np.asarray(crop_to(flatten(image), box))[None].copy(), _as_mask(mask, box)


def _read_clip(
    item: Item, frames: int, fps: float, change: Callable[[Image.Image], np.ndarray]
) -> list[np.ndarray]:
    facts = item.facts
    if _by_number(item, fps):
        return read_frames(item.path, pick_frames(facts.frames, facts.fps, frames, fps, item.place), change)
    nearest = (
        0.5 / facts.fps if facts.even else 0.0
    )  # time stamps are rounded: what stands half a frame later
    times = pick_times(facts.frames, facts.fps, frames, fps, item.place)
    return read_times(item.path, [time + nearest for time in times], change)


def _as_mask(mask: Image.Image | None, box: tuple[int, int]) -> np.ndarray | None:
    return None if mask is None else np.asarray(crop_to(mask, box), dtype=np.float32) / 255


def _with_room(item: Item, bucket: Bucket, room: float) -> Bucket:
    """The bucket's shape, larger by `room` as far as the source holds that many pixels."""
    fits = min(item.facts.width / bucket.width, item.facts.height / bucket.height)
    scale = max(1.0, min(room, fits))
    return bucket._replace(width=round(bucket.width * scale), height=round(bucket.height * scale))
