"""Encoded items on disk, addressed by what determines them.

The latent of an image depends on its bytes, its training size, its augmentation and the VAE; the conditioning of a
caption on its text and the text encoder. Each is one safetensors file named by the hash of exactly that, so nothing is
encoded twice, changing one caption encodes one caption, and an interrupted encoding keeps what is done. `encode.py`
makes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import KilnError
from .items import Role

FORMAT = "2"  # part of every address: raise it when what is stored changes meaning


class Encoder(Protocol):
    """The graph's VAE and text encoder. Fingerprints change whenever their output would."""

    image_fingerprint: str
    text_fingerprint: str

    def make_room(self) -> None:
        """Called once before anything is encoded: take other models off the device."""
        ...

    def encode_pixels(self, pixels: np.ndarray) -> Tensor:
        """(B, F, H, W, 3) fp32 in 0..1 -> latents (B, C, F', h, w), or (B, C, h, w) where the VAE knows no frames."""
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
    more_latents: tuple[Path, ...] = ()  # further augmented variants, of the same shape
    more_texts: tuple[Path, ...] = ()  # the caption's tags in other orders
    empty_text: Path | None = None  # shown instead of the caption ...
    caption_dropout: float = 0.0  # ... with this probability
    masked: bool = False

    @property
    def latents(self) -> tuple[Path, ...]:
        return (self.latent_path, *self.more_latents)

    @property
    def texts(self) -> tuple[Path, ...]:
        return (self.text_path, *self.more_texts)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that training may open."""
        return (*self.latents, *self.texts, *([self.empty_text] if self.empty_text else []))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncodedItem:
        """The inverse of to_dict.

        Raises:
            TypeError, KeyError: the values are not an item's.
        """
        empty = values.get("empty_text")
        paths = {
            "latent_path": Path(values["latent_path"]),
            "text_path": Path(values["text_path"]),
            "more_latents": tuple(Path(p) for p in values.get("more_latents", ())),
            "more_texts": tuple(Path(p) for p in values.get("more_texts", ())),
            "empty_text": None if empty is None else Path(empty),
        }
        return cls(**{**values, **paths, "shape": tuple(values["shape"])})

    def load(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The first latent and the caption's conditioning, on the CPU, without batch dimension."""
        return load_latent(self.latent_path)["latent"], load_text(self.text_path)


@dataclass(frozen=True)
class EncodedDataset:
    """What a training run eats."""

    items: tuple[EncodedItem, ...]
    encoded_now: int = 0  # files that were not in the cache

    @property
    def fingerprint(self) -> str:
        """Of everything that is trained on, in order."""
        parts = (
            "".join(p.stem for p in (*i.latents, *i.texts))
            + f"{i.repeats}{i.role}{i.loss_weight}{i.caption_dropout}"
            for i in self.items
        )
        return _address("dataset", parts)

    @property
    def files(self) -> int:
        """Encoded files in use: variants of every item counted."""
        return sum(len(i.latents) + len(i.texts) + (i.empty_text is not None) for i in self.items)

    def describe(self) -> str:
        """What is there, for the node's text."""
        shapes = Counter("x".join(map(str, i.shape)) for i in self.items)
        kinds = ", ".join(f"{count} of {shape}" for shape, count in shapes.most_common(12))
        masked = sum(i.masked for i in self.items)
        kinds += f"; {masked} with a loss mask" if masked else ""
        return f"{len(self.items)} items, latents: {kinds}\n{self.encoded_now} of {self.files} encoded now"

    @property
    def channels(self) -> int:
        return self.items[0].shape[0]


def load_latent(path: Path) -> dict[str, Tensor]:
    """ "latent" (C, [F,] h, w) and, where the item has one, "mask" (1, [F,] h, w) in 0..1.

    Raises:
        KilnError: the file is gone or damaged.
    """
    return _read(path)


def load_text(path: Path) -> dict[str, Tensor]:
    """Conditioning by name, without batch dimension.

    Raises:
        KilnError: the file is gone or damaged.
    """
    return _unpack_text(_read(path))


def _address(kind: str, parts: Iterable[str]) -> str:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(b"\0" + part.encode("utf-8", "surrogatepass"))
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


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
