"""Encoded items on disk, addressed by what determines them.

The latent of an image depends on its bytes, its training size, its augmentation and the VAE; the conditioning of a
caption on its text and the text encoder. Each is one safetensors file named by the hash of exactly that, so nothing is
encoded twice, changing one caption encodes one caption, and an interrupted encoding keeps what is done. `encode.py`
makes them; what a conditioning may hold is in `conditioning.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from ..conditioning import (
    HEADER,
    ItemConditioning,
    equal,
    names_of_entries,
    pack,
    unpack,
    unpack_tensors_only,
)
from ..errors import KilnError, shortened
from ..parsers import parse_json
from ..safefile import write_safetensors
from .items import Item, Role
from .names import shown_name

NOISE_MASK = "kiln_noise_mask"
"""Entry of a guide that is no conditioning of the model."""

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

    def reading_of(self, caption: str) -> str:
        """Told apart from others in a caption's address: "" for the reading that prompts have."""
        return ""

    def encode_text(self, caption: str, pictures: Sequence[np.ndarray] = ()) -> ItemConditioning:
        """Conditioning of one caption, whole: "cross_attn" (1, L, D) and whatever else the text encoder gives.

        pictures: control pictures or the item's first frame, for a text encoder that looks at them.
        """
        ...

    def encode_texts(self, captions: Sequence[str]) -> list[ItemConditioning]:
        """Of several captions, each as if it were encoded alone."""
        return [self.encode_text(caption) for caption in captions]

    def guide_of(self, item: Item, frames: int) -> str:
        """What is made of an item's own frames or of its control pictures beside its text, told apart from other ways
        and other models; "" for nothing.

        Raises:
            KilnError: it is wanted and cannot be made of this item.
        """
        return ""

    def text_sees_controls(self, item: Item) -> str:
        """How the text encoder looks at the item's control pictures; "" when it does not."""
        return ""

    def text_sees_first_frame(self, item: Item) -> str:
        """How the text encoder looks at the item's own first frame; "" when it does not."""
        return ""

    def encode_guide(
        self, item: Item, frames: np.ndarray, controls: Sequence[np.ndarray]
    ) -> ItemConditioning:
        """What `guide_of` has announced, as entries of a conditioning. NOISE_MASK among them, (1, [F,] h, w), is 0
        where a sampler is given the latent and adds no noise.

        Args:
            frames: the item, (F, H, W, 3) fp32 in 0..1.
            controls: its control pictures, each (F, H, W, 3).
        """
        return {}


class EncodedFile(NamedTuple):
    """What a file of the cache holds: a conditioning is packed as it lies there, without the padding of its rows."""

    tensors: dict[str, Tensor]
    header: str | None  # the JSON of a conditioning; None for a latent, and of files of earlier versions


@dataclass(frozen=True)
class PixelSize:
    """How an item's pixels came to their training size; what SDXL is told (Podell et al. 2023, arXiv 2307.01952,
    section 2.2)."""

    width: int  # of the original, in pixels
    height: int
    crop_left: int  # cut off at the left and at the top after resizing, in pixels of the training size
    crop_top: int
    target_width: int  # training size
    target_height: int


_PLAIN: dict[str, type | tuple[type, ...]] = {
    "caption": str,
    "role": str,
    "repeats": int,
    "masked": bool,
    "noise_mask": bool,
    **dict.fromkeys(("loss_weight", "caption_dropout", "frame_rate", "slider_guidance"), (int, float)),
}


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
    sizes: tuple[PixelSize, ...] = ()  # one per latent; none where the pixels are not known
    frame_rate: float = 0.0  # of a clip, in frames per second; 0: a still, or not known
    guides: tuple[Path, ...] = ()  # one per latent: what of its pixels is given to the model beside the text
    guide_dropout: float = 0.0  # probability of a sample without it
    noise_mask: bool = False  # the mask is that of a graph's latent: 0 where a sampler adds no noise
    class_texts: tuple[Path, ...] = ()  # as many for each text: with a class in the trigger word's place
    source: Path | None = None  # the picture or clip that it was made of, to show it; where it is known
    slider_ends: tuple[Path, ...] = ()  # two for each text: what strength 1 and -1 of a slider make of it
    slider_guidance: float = 0.0  # times the way between them

    @property
    def name(self) -> str:
        """For people: its file, or how its caption begins."""
        words = self.source.name if self.source else shortened(" ".join(self.caption.split()), 40)
        return shown_name(words) if words else "without a caption"

    words: tuple[str, ...] = ()  # what each of `texts` was encoded from; none where no text alone says it

    @property
    def latents(self) -> tuple[Path, ...]:
        return (self.latent_path, *self.more_latents)

    @property
    def texts(self) -> tuple[Path, ...]:
        return (self.text_path, *self.more_texts)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that training may open."""
        empty = [self.empty_text] if self.empty_text else []
        return (*self.latents, *self.texts, *empty, *self.guides, *self.class_texts, *self.slider_ends)

    def to_dict(self, stored: Callable[[Path], str] = str) -> dict[str, Any]:
        """Plain values, for JSON; `stored` says how a path is written."""
        return {f.name: _plain(getattr(self, f.name), stored) for f in dataclasses.fields(self)}

    def without_words(self) -> EncodedItem:
        """All that is trained on, without what a person wrote or named."""
        return dataclasses.replace(self, caption="", words=(), source=None)

    @classmethod
    def from_dict(cls, values: dict[str, Any], found: Callable[[str], Path] = Path) -> EncodedItem:
        """The inverse of to_dict, with that of `stored`.

        Raises:
            TypeError, KeyError: the values are not an item's.
        """
        for name, kind in _PLAIN.items():
            if name in values and not isinstance(values[name], kind):
                raise TypeError(f"{name} is of another kind")
        if not all(type(side) is int and side > 0 for side in values["shape"]):
            raise TypeError("shape is none")
        empty = values.get("empty_text")
        paths = {
            "latent_path": found(values["latent_path"]),
            "text_path": found(values["text_path"]),
            "more_latents": tuple(found(p) for p in values.get("more_latents", ())),
            "more_texts": tuple(found(p) for p in values.get("more_texts", ())),
            "empty_text": None if empty is None else found(empty),
            "guides": tuple(found(p) for p in values.get("guides", ())),
            "class_texts": tuple(found(p) for p in values.get("class_texts", ())),
            "source": None if (source := values.get("source")) is None else found(source),
            "slider_ends": tuple(found(p) for p in values.get("slider_ends", ())),
            "sizes": tuple(PixelSize(**size) for size in values.get("sizes", ())),
            "words": tuple(values.get("words", ())),
        }
        if not all(isinstance(text, str) for text in values.get("words", ())):
            raise TypeError("words are no texts")
        item = cls(**{**values, **paths, "shape": tuple(values["shape"])})
        if len(item.class_texts) % len(item.texts):
            raise TypeError("class_texts are not as many for each text")
        if item.slider_ends and len(item.slider_ends) != 2 * len(item.texts):
            raise TypeError("slider_ends are not two for each text")
        return item

    def load(self) -> tuple[Tensor, ItemConditioning]:
        """The first latent (C, [F,] h, w) and the caption's conditioning, on the CPU."""
        return load_latent(self.latent_path)["latent"], load_text(self.text_path)


@dataclass(frozen=True)
class EncodedDataset:
    """Encoded items, ready to be trained on."""

    items: tuple[EncodedItem, ...]
    encoded_now: int = 0  # files that were not in the cache
    trigger_word: str = ""  # of the caption template, for the LoRA's metadata
    class_word: str = ""  # likewise: what the trigger word is one of, where the model keeps it as it was
    slider: str = ""  # likewise: its words, where a slider is trained
    remarks: tuple[str, ...] = ()  # what may not be as it was meant
    text_encoder: str = ""  # fingerprint of the one that the captions were encoded with
    prompt_syntax: bool = False  # whether it read them as prompts

    @property
    def fingerprint(self) -> str:
        """Of everything that is trained on, in order."""
        parts = (
            "".join(p.stem for p in (*i.latents, *i.texts, *i.guides))
            + f"{i.repeats}{i.role}{i.loss_weight}{i.caption_dropout}"
            + (f"{i.guide_dropout}" if i.guides else "")
            + "".join(f"class {p.stem}" for p in i.class_texts)
            + (f"slider {i.slider_guidance}" if i.slider_ends else "")
            + "".join(p.stem for p in i.slider_ends)
            for i in self.items
        )
        return address_of("dataset", parts)

    @property
    def files(self) -> int:
        """Encoded files in use: variants of every item counted."""
        return sum(len(i.files) for i in self.items)

    def describe(self) -> str:
        """What is there, for the node's text."""
        shapes = Counter("x".join(map(str, i.shape)) for i in self.items)
        kinds = ", ".join(f"{shape} ({count})" for shape, count in shapes.most_common(12))
        lines = [f"{len(self.items)} items, latents {kinds}"]
        masked = sum(i.masked for i in self.items)
        if masked:
            lines.append(f"{masked} with a loss mask")
        if self.slider:
            lines.append(f"a slider: {self.slider}")
        if kept := sum(bool(i.class_texts) for i in self.items):
            lines.append(f"{kept} with a class that the model keeps as it was: {self.class_word}")
        lines.append(f"{self.encoded_now} of {self.files} encoded now")
        return "\n".join(lines + [f"note: {remark}" for remark in self.remarks])

    @property
    def channels(self) -> int:
        return self.items[0].shape[0]


def load_latent(path: Path) -> dict[str, Tensor]:
    """ "latent" (C, [F,] h, w) and, where the item has one, "mask" (1, [F,] h, w) in 0..1.

    Raises:
        KilnError: the file is gone or damaged.
    """
    return read_encoded(path).tensors


def load_text(path: Path) -> ItemConditioning:
    """One item's conditioning, see conditioning.py.

    Raises:
        KilnError: the file is gone or damaged.
    """
    return unpack_text(path, read_encoded(path))


def entry_names(path: Path) -> frozenset[str]:
    """The names of a conditioning's entries, without reading its tensors.

    Raises:
        KilnError: the file is gone or damaged.
    """
    try:
        with open(path, "rb") as opened:
            header = parse_json(opened.read(int.from_bytes(opened.read(8), "little")))
        kept = (header.get("__metadata__") or {}).get(HEADER)
        return frozenset(header) - {"__metadata__", "length"} if kept is None else names_of_entries(kept)
    except Exception as error:
        raise KilnError(_damaged(path, error)) from error


def unpack_text(path: Path, file: EncodedFile) -> ItemConditioning:
    """The same of a file that has been read; `path` is its name in messages."""
    if file.header is None:
        return unpack_tensors_only(file.tensors)
    try:
        return unpack(file.tensors, file.header)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise KilnError(_damaged(path, error)) from error


def write_conditioning(path: Path, entry: ItemConditioning) -> None:
    """Write, or replace, one item's conditioning.

    Raises:
        KilnError: an entry cannot be kept, or writing failed; nothing is left behind.
    """
    tensors, header = pack(entry)
    write_safetensors(path, tensors, {HEADER: header})


def complete_conditioning(path: Path, entry: ItemConditioning) -> None:
    """Write what was encoded now where an earlier version may have kept its tensors only: these stay to the bit."""
    known = load_text(path) if is_whole(path) else {}
    same = {
        name: value
        for name, value in known.items()
        if isinstance(entry.get(name), Tensor) and entry[name].shape == value.shape
    }
    write_conditioning(path, {**entry, **same})


def address_of(kind: str, parts: Iterable[str]) -> str:
    """A hash of everything that determines a file's contents, 64 hex digits."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(b"\0" + part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def cache_path(folder: Path, address: str) -> Path:
    """Where the file of an address lies in its folder of the cache."""
    return folder / address[:2] / f"{address}.safetensors"


def is_whole(path: Path) -> bool:
    """There and readable: a file cut short by a power failure counts as absent."""
    try:
        with safe_open(path, "pt") as opened:
            opened.keys()
        return True
    except Exception:  # safetensors raises its own error type, OSError or FileNotFoundError
        return False


def is_kept_whole(path: Path) -> bool:
    """Whether a conditioning is there with everything that belongs to it; earlier versions kept some tensors only."""
    return is_whole(path) and read_encoded(path).header is not None


def holds(path: Path, entry: ItemConditioning) -> bool:
    """Whether a file holds just this conditioning."""
    return is_kept_whole(path) and equal(load_text(path), unpack(*pack(entry)))


def latent_shape(path: Path) -> tuple[int, ...]:
    """(C, [F,] h, w), without reading the latent."""
    with safe_open(path, "pt") as opened:
        return tuple(opened.get_slice("latent").get_shape())


def learns_nothing(item: EncodedItem) -> bool:
    """Whether its masks keep nothing of any of its latents, as they may after cropping."""
    return item.masked and not any(bool(_mask(path).any()) for path in item.latents)


def _mask(path: Path) -> Tensor:
    """(1, [F,] h, w), without reading the latent."""
    try:
        with safe_open(path, "pt") as opened:
            return opened.get_tensor("mask").clone()
    except Exception as error:
        raise KilnError(_damaged(path, error)) from error


def read_encoded(path: Path) -> EncodedFile:
    """A file of the cache in memory of its own: a mapped one would be read when it is used, and could not be replaced
    on Windows.

    Raises:
        KilnError: it is gone or damaged.
    """
    try:
        content = path.read_bytes()
        header_bytes = int.from_bytes(content[:8], "little")
        metadata = parse_json(content[8 : 8 + header_bytes]).get("__metadata__") or {}
        return EncodedFile(dict(sorted(load(content).items())), metadata.get(HEADER))
    except Exception as error:  # safetensors has its own error type
        raise KilnError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    return f"The encoded file {path} is gone or damaged ({error}); delete the folder {path.parents[2]} and queue again."


def _plain(value: Any, stored: Callable[[Path], str]) -> Any:
    if isinstance(value, tuple):
        return [_plain(v, stored) for v in value]
    if isinstance(value, PixelSize):
        return dataclasses.asdict(value)
    return stored(value) if isinstance(value, Path) else value
