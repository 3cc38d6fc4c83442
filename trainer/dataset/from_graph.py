"""Datasets from what other nodes of a graph made: images in memory, or latents and conditioning.

Both are written to disk, named by their contents, so that they are handled as if they had come from a folder and are
not kept in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..conditioning import ItemConditioning, check_trainable, pack
from ..errors import KilnError
from ..safefile import replacing, write_safetensors
from .encode import latent_mask
from .encoded import (
    FORMAT,
    EncodedDataset,
    EncodedItem,
    address_of,
    cache_path,
    complete_conditioning,
    holds,
    is_kept_whole,
    is_whole,
    learns_nothing,
)
from .items import Dataset, Item
from .pixels import MIN_SIDE
from .scan import measure_file


def images_to_dataset(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    store: Path,
    repeats: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Images of a graph as a dataset.

    Args:
        images: (H, W, 3 or 4) in 0..1; a fourth channel is transparency and becomes the loss mask.
        captions: one, or one per image; none leaves them empty.
        store: folder where the images are kept as png.
        repeats: how often each is seen in an epoch.
        on_progress: called after each with (done, total).

    Raises:
        KilnError: the numbers do not match, an image is too small, or the disk is full.
    """
    texts = match_captions(len(images), captions, "images")
    items = []
    for number, (pixels, caption) in enumerate(zip(images, texts, strict=True), 1):
        if min(pixels.shape[:2]) < MIN_SIDE:
            raise KilnError(
                f"Image {number} has {pixels.shape[1]}x{pixels.shape[0]} pixels; at least {MIN_SIDE}x{MIN_SIDE} are "
                "needed."
            )
        facts = measure_file(path := _store_image(pixels, store))
        items.append(Item(path, facts, caption.strip(), repeats, folder="graph", use_alpha=facts.has_alpha))
        on_progress(number, len(images))
    return Dataset(tuple(items))


def encoded_from_latents(
    latents: Sequence[dict[str, Any]], positive: Sequence[Any], cache: Path, repeats: int = 1
) -> EncodedDataset:
    """What the host's dataset nodes, encoders and samplers hand on, as an encoded dataset.

    Args:
        latents: LATENT values, {"samples": (B, C, [F,] h, w)} and perhaps "noise_mask"; every sample is an item.
        positive: CONDITIONING values, each a list of [(1, L, D), {...}]; one entry in all, or one per item.
        cache: folder of the encoded files.

    Raises:
        KilnError: the numbers do not match, a latent is of no kind that can be trained on, a conditioning holds what
            cannot be kept or trained, or the disk is full.
    """
    samples = [(sample, mask) for latent in latents for sample, mask in _split(latent)]
    entries = [_conditioning(entry) for conditioning in positive for entry in conditioning]
    if len(entries) == 1:
        entries *= len(samples)
    if not samples or len(entries) != len(samples):
        raise KilnError(_numbers(samples, positive, entries))
    items, new = [], 0
    for (sample, mask), entry in zip(samples, entries, strict=True):
        tensors = {"latent": sample} if mask is None else {"latent": sample, "mask": mask}
        latent_path, made = _keep(tensors, cache / "latents")
        text_path, made_text = keep_conditioning(entry, cache / "texts")
        new += made + made_text
        shape = tuple(sample.shape)
        masked = mask is not None
        items.append(
            EncodedItem(latent_path, text_path, "", shape, repeats=repeats, masked=masked, noise_mask=masked)
        )
    if all(learns_nothing(item) for item in items):
        raise KilnError(
            f"The noise masks keep nothing of all {len(items)} latents, so nothing would be learned; connect masks "
            "that are white where something is learned, or none."
        )
    return EncodedDataset(tuple(items), new)


def match_captions(count: int, captions: Sequence[str], what: str) -> list[str]:
    """One caption per item from one, none or just as many.

    Raises:
        KilnError: another number.
    """
    texts = list(captions) or [""]
    if len(texts) == 1:
        texts *= count
    if len(texts) != count:
        raise KilnError(f"There are {count} {what} and {len(texts)} captions; connect one, or one per image.")
    return texts


def _store_image(pixels: np.ndarray, store: Path) -> Path:
    eight_bit = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    name = hashlib.sha256(eight_bit.tobytes() + str(eight_bit.shape).encode()).hexdigest()[:32]
    path = store / f"{name}.png"
    if not path.is_file():
        with replacing(path) as temporary:
            Image.fromarray(eight_bit).save(temporary, "png", compress_level=1)
    return path


def _split(latent: dict[str, Any]) -> list[tuple[Tensor, Tensor | None]]:
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or samples.ndim not in (4, 5):
        kind = f"shape {tuple(samples.shape)}" if isinstance(samples, Tensor) else type(samples).__name__
        raise KilnError(
            f"A latent of {kind} cannot be trained on; connect latents of images or of one video stream."
        )
    samples = samples.detach().float().cpu()
    mask = latent.get("noise_mask")
    masks: list[Tensor | None] = [None] * len(samples)
    if isinstance(mask, Tensor):
        masks = [_mask_of(mask.detach().float().cpu(), i, samples) for i in range(len(samples))]
    return [(s.clone().contiguous(), m) for s, m in zip(samples, masks, strict=True)]


def _mask_of(mask: Tensor, number: int, samples: Tensor) -> Tensor:
    """(1, [F,] h, w) of one sample. As the host reads a noise mask: (B, 1, F, H, W) has one for each frame, and so has
    (F, H, W) beside a single clip; others have one for each sample, or one for all."""
    frames = mask[min(number, len(mask) - 1)][:1] if mask.ndim == 5 else None
    if mask.ndim == 3 and samples.ndim == 5 and len(samples) == 1 and len(mask) > 1:
        frames = mask[None]
    if frames is not None and samples.ndim == 5:
        return torch.nn.functional.interpolate(frames[None], samples.shape[2:], mode="area")[0].contiguous()
    flat = mask.reshape(-1, *mask.shape[-2:])
    return latent_mask(flat[min(number, len(flat) - 1)], tuple(samples.shape[1:]))


def _numbers(samples: Sequence[Any], positive: Sequence[Any], entries: Sequence[Any]) -> str:
    """The sentence when they do not match; several entries in one CONDITIONING are what confuses people."""
    found = f"There are {len(samples)} latents and {len(entries)} conditionings"
    combined = max(map(len, positive), default=0)
    if samples and combined > 1:
        return (
            f"{found}; connect one conditioning, or one per latent (one of those connected has {combined} entries, as "
            "Conditioning Combine and scheduled captions make them; an item is trained on a single one)."
        )
    return f"{found}; connect one conditioning, or one per latent."


def _conditioning(entry: Any) -> ItemConditioning:
    """An entry of a CONDITIONING with its tensor among the rest, as the host itself does before it samples."""
    text, extras = entry
    check_trainable(extras)
    if text is not None and len(text) != 1:
        raise KilnError(
            f"A conditioning holds a batch of {len(text)} texts; an item is trained on one: split it, or encode the "
            "texts one by one and connect them as a list."
        )
    return {**extras, **({} if text is None else {"cross_attn": text})}


def keep_conditioning(entry: ItemConditioning, folder: Path) -> tuple[Path, bool]:
    """Where the conditioning lies, and whether it was written now.

    What earlier versions kept whole, but for a pooled_output of None, has the address that they gave it: their runs
    can be resumed. What else they left out makes it another conditioning, at another address.
    """
    tensors, header = pack(entry)
    addresses = [_digest({**tensors, "": torch.tensor(list(header.encode()), dtype=torch.uint8)})]
    if (plain := _as_once_kept(entry)) is not None:
        addresses.insert(0, _digest(plain))
    for path in (cache_path(folder, address) for address in addresses):
        if holds(path, entry):
            return path, False
        if not is_kept_whole(path):
            complete_conditioning(path, entry)
            return path, True
    raise AssertionError("the last address is of the whole content")


def _as_once_kept(entry: ItemConditioning) -> dict[str, Tensor] | None:
    """The tensors that earlier versions kept of a conditioning; None where they left anything out."""
    found: dict[str, Tensor] = {}
    for name, value in entry.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == 1:
            found[name] = value[0].detach().cpu()
        elif name != "pooled_output" or value is not None:
            return None
    rows = found.get("cross_attn")
    if rows is None or rows.ndim != 2 or not rows.numel():
        return None
    used = int(rows.ne(0).any(-1).nonzero().max()) + 1 if bool(rows.any()) else 1
    return {**found, "cross_attn": rows[:used], "length": torch.tensor([rows.shape[0]])}


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return address_of(FORMAT, ["graph", digest.hexdigest()])


def _keep(tensors: dict[str, Tensor], folder: Path) -> tuple[Path, bool]:
    path = cache_path(folder, _digest(tensors))
    if is_whole(path):
        return path, False
    write_safetensors(path, tensors)
    return path, True
