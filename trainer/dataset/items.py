"""A dataset as it lies on disk: cheap, immutable, no pixels.

`scan_folder` reads a folder of images with captions beside them; `read_pixels` opens one image when it is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ..errors import KilnError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_ENDINGS = (".txt", ".caption")


Role = Literal["subject", "regularisation", "validation"]
"""What an item is for: learned, kept as it was (prior preservation), or only looked at for the validation loss."""


@dataclass(frozen=True)
class Item:
    """One image and what is said of it."""

    path: Path
    width: int  # pixels, after EXIF rotation
    height: int
    sha256: str  # of the file's bytes
    caption: str
    repeats: int = 1  # times it is seen in an epoch
    role: Role = "subject"
    loss_weight: float = 1.0  # of its loss in the step's mean


@dataclass(frozen=True)
class Dataset:
    """Items in their natural order, and the bad files that were left out (path and reason)."""

    items: tuple[Item, ...]
    skipped: tuple[str, ...] = ()

    def describe(self) -> str:
        """What was found, for the node's text."""
        captioned = sum(bool(i.caption) for i in self.items)
        widths, heights = [i.width for i in self.items], [i.height for i in self.items]
        lines = [
            f"{len(self.items)} images, {captioned} with captions",
            f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)} pixels",
        ]
        return "\n".join(lines + [f"skipped: {reason}" for reason in self.skipped])

    def with_captions(self, captions: list[str]) -> Dataset:
        """The same images with other captions, one each."""
        changed = (dataclasses.replace(i, caption=c) for i, c in zip(self.items, captions, strict=True))
        return dataclasses.replace(self, items=tuple(changed))


def scan_folder(
    folder: Path,
    *,
    repeats: int = 1,
    recursive: bool = False,
    on_bad_file: Literal["stop", "skip"] = "stop",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Read what is in a folder: every image is decoded once, so that a broken one is found now.

    Args:
        folder: must exist.
        repeats: how often each item is seen in an epoch, >= 1.
        recursive: also look into sub-folders.
        on_bad_file: "stop" raises at the first bad file, "skip" lists it in `skipped`.
        on_progress: called after each file with (done, total).

    Raises:
        KilnError: the folder is missing or holds no image, or a file is bad and on_bad_file is "stop".
    """
    if not folder.is_dir():
        raise KilnError(
            f"The folder {folder} does not exist; put your images in a folder under ComfyUI/input."
        )
    paths = sorted(_image_paths(folder, recursive), key=_natural_key)
    items: list[Item] = []
    skipped: list[str] = []
    for done, path in enumerate(paths, 1):
        try:
            items.append(_read_item(path, repeats))
        except KilnError as error:
            if on_bad_file == "stop":
                raise
            skipped.append(str(error))
        on_progress(done, len(paths))
    if not items:
        found = f"none of its {len(paths)} images can be read" if paths else "it holds no image"
        raise KilnError(f"The folder {folder} cannot be used: {found} ({', '.join(IMAGE_ENDINGS)}).")
    return Dataset(tuple(items), tuple(skipped))


def folder_state(folder: Path, recursive: bool) -> str:
    """Changes whenever an image or caption of the folder does: names, sizes and times, no contents."""
    digest = hashlib.sha256()
    for image in sorted(_image_paths(folder, recursive)):
        for path in (image, *(image.with_suffix(e) for e in CAPTION_ENDINGS)):
            if path.is_file():
                status = path.stat()
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def read_pixels(path: Path) -> Image.Image:
    """One image as RGB, upright; transparency is laid on white.

    Raises:
        KilnError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if "A" in image.getbands() or "transparency" in image.info:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise KilnError(f"The image {path} cannot be read ({error}); replace or remove it.") from error


def fit_size(width: int, height: int, resolution: int, multiple: int = 16) -> tuple[int, int]:
    """The training size of an image: its shape at an area of at most resolution x resolution, never enlarged.

    Both sides are multiples of `multiple` pixels and at least one multiple.
    """
    scale = min(1.0, resolution / (width * height) ** 0.5)

    def snap(side: int) -> int:
        target = side * scale
        snapped = round(target / multiple) * multiple
        return max(multiple, snapped if snapped <= side else int(side // multiple) * multiple)

    return snap(width), snap(height)


def crop_to(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Resize to cover `size` (width, height) and cut the middle out: (H, W, 3) fp32 in 0..1."""
    fitted = image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return np.asarray(fitted, dtype=np.float32) / 255.0


def _image_paths(folder: Path, recursive: bool) -> Iterator[Path]:
    paths = folder.rglob("*") if recursive else folder.glob("*")
    for path in paths:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_ENDINGS and not hidden and path.is_file():
            yield path


def _natural_key(path: Path) -> list[tuple[int, int, str]]:
    """a2 before a10."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _read_item(path: Path, repeats: int) -> Item:
    width, height = read_pixels(path).size
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Item(path, width, height, digest, _read_caption(path), repeats)


def _read_caption(image: Path) -> str:
    for ending in CAPTION_ENDINGS:
        path = image.with_suffix(ending)
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise KilnError(
                    f"The caption file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8."
                ) from error
    return ""
