"""Encoded items on disk, addressed by what determines them.

The latent of an image depends on its bytes, its training size and the VAE; the conditioning of a caption on its
text and the text encoder. Each is one safetensors file named by the hash of exactly that, so nothing is encoded
twice, changing one caption encodes one caption, and an interrupted encoding keeps what is done.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import KilnError
from ..safefile import write_safetensors
from .items import Dataset, Role, crop_to, fit_size, read_pixels

FORMAT = "1"  # part of every address: raise it when what is stored changes meaning


class Encoder(Protocol):
    """The graph's VAE and text encoder. Fingerprints change whenever their output would."""

    image_fingerprint: str
    text_fingerprint: str

    def encode_image(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) fp32 in 0..1 -> latent (C, F, h, w), or (C, h, w) where the VAE knows no frames."""
        ...

    def encode_text(self, caption: str) -> dict[str, Tensor]:
        """Conditioning of one caption without batch dimension: "cross_attn" (L, D), "pooled_output" (D) if any."""
        ...


@dataclass(frozen=True)
class EncodedItem:
    """Where one item's tensors lie."""

    latent_path: Path
    text_path: Path
    caption: str
    shape: tuple[int, ...]  # of the latent
    repeats: int = 1
    role: Role = "subject"
    loss_weight: float = 1.0

    def load(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Latent and conditioning, on the CPU, without batch dimension."""
        latent = _read(self.latent_path)["latent"]
        return latent, _unpack_text(_read(self.text_path))


@dataclass(frozen=True)
class EncodedDataset:
    """What a training run eats."""

    items: tuple[EncodedItem, ...]
    encoded_now: int = 0  # files that were not in the cache

    @property
    def fingerprint(self) -> str:
        """Of everything that is trained on, in order."""
        parts = (
            f"{i.latent_path.stem}{i.text_path.stem}{i.repeats}{i.role}{i.loss_weight}" for i in self.items
        )
        return _address("dataset", parts)

    def describe(self) -> str:
        """What is there, for the node's text."""
        shapes = Counter("x".join(map(str, i.shape)) for i in self.items)
        kinds = ", ".join(f"{count} of {shape}" for shape, count in shapes.most_common())
        return f"{len(self.items)} items, latents: {kinds}\n{self.encoded_now} of {2 * len(self.items)} encoded now"

    @property
    def channels(self) -> int:
        return self.items[0].shape[0]


def encode_dataset(
    dataset: Dataset,
    encoder: Encoder,
    cache: Path,
    resolution: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedDataset:
    """Encode what is not in the cache yet.

    Args:
        dataset: images and captions.
        encoder: the graph's VAE and CLIP.
        cache: folder of the encoded files; made when missing.
        resolution: training area is at most resolution x resolution pixels; images are never enlarged.
        on_progress: called with (done, total) after each item; may raise to stop (what is done stays done).

    Raises:
        KilnError: an image cannot be read, or the disk is full.
    """
    sizes = [fit_size(i.width, i.height, resolution) for i in dataset.items]
    latent_paths = [
        _path(cache / "latents", _address(FORMAT, [i.sha256, f"{s[0]}x{s[1]}", encoder.image_fingerprint]))
        for i, s in zip(dataset.items, sizes, strict=True)
    ]
    text_paths = [
        _path(cache / "texts", _address(FORMAT, [i.caption, encoder.text_fingerprint])) for i in dataset.items
    ]
    total = 2 * len(dataset.items)
    done = encoded_now = 0
    # All images first, then all captions: the host holds VAE and text encoder on the device once each.
    for item, size, path in zip(dataset.items, sizes, latent_paths, strict=True):
        if not _is_whole(path):
            latent = encoder.encode_image(crop_to(read_pixels(item.path), size))
            write_safetensors(path, {"latent": latent.float().contiguous().cpu()})
            encoded_now += 1
        done += 1
        on_progress(done, total)
    for item, path in zip(dataset.items, text_paths, strict=True):
        if not _is_whole(path):
            write_safetensors(path, _pack_text(encoder.encode_text(item.caption)))
            encoded_now += 1
        done += 1
        on_progress(done, total)
    items = (
        EncodedItem(latent, text, item.caption, _shape(latent), item.repeats, item.role, item.loss_weight)
        for item, latent, text in zip(dataset.items, latent_paths, text_paths, strict=True)
    )
    return EncodedDataset(tuple(items), encoded_now)


def _address(kind: str, parts: Iterable[str]) -> str:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def _path(folder: Path, address: str) -> Path:
    return folder / address[:2] / f"{address}.safetensors"


def _is_whole(path: Path) -> bool:
    """There and readable: a file cut short by a power failure counts as absent."""
    try:
        with safe_open(path, "pt") as opened:
            opened.keys()
        return True
    except Exception:  # safetensors raises its own error type, OSError or FileNotFoundError
        return False


def _shape(path: Path) -> tuple[int, ...]:
    with safe_open(path, "pt") as opened:
        return tuple(opened.get_slice("latent").get_shape())


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise KilnError(
            f"The encoded file {path} is gone or damaged ({error}); delete the folder {path.parents[2]} and queue "
            "again."
        ) from error


def _pack_text(conditioning: dict[str, Tensor]) -> dict[str, Tensor]:
    """Text encoders pad with zero rows (UMT5 to 512): store the rows before them and the full length."""
    packed = {k: v.contiguous().cpu() for k, v in conditioning.items()}
    rows = packed["cross_attn"]
    used = int(rows.ne(0).any(-1).nonzero().max()) + 1 if bool(rows.any()) else 1
    packed["cross_attn"] = rows[:used].clone()
    packed["length"] = torch.tensor([rows.shape[0]])
    return packed


def _unpack_text(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    length = int(packed.pop("length"))
    rows = packed["cross_attn"]
    packed["cross_attn"] = torch.nn.functional.pad(rows, (0, 0, 0, length - rows.shape[0]))
    return packed
