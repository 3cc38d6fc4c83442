"""What is measured of a file once and cached, so that a report reads no pixels.

`measure` works on any picture; the thresholds that turn figures into warnings live in quality.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

SIDE = 768  # detail is measured on at most this many pixels a side, from the middle: enough to judge
SHARP = 0.15  # an edge counts as sharp when its second difference is this share of the picture's contrast
LEVELS = 4  # detail is looked for at 1/1, 1/2, 1/4 and 1/8 of the size


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Measured once per file."""

    width: int  # pixels, upright
    height: int
    sha256: str = ""  # of the file's bytes
    frames: int = 1  # of the source; a still has one
    fps: float = 0.0  # of the source, from its first frame to its last; 0 for stills
    even: bool = True  # its frames all stand equally long
    has_alpha: bool = False  # some of it is transparent
    kept: float = 1.0  # share 0-1 of it that is opaque
    phash: int = 0  # 64-bit perceptual hash
    colours: str = ""  # 4x4 RGB means as hex, to tell alike shapes of other colours apart
    detail: float = (
        1.0  # scale at which it is sharp: 0.25 means a quarter of its pixels a side would hold it all
    )
    text_like: bool = False  # rows of marks of one height, as writing has

    @property
    def seconds(self) -> float:
        return self.frames / self.fps if self.fps else 0.0


def measure(image: Image.Image, scale: float = 1.0) -> dict[str, float | int | str | bool]:
    """The figures of one picture.

    Args:
        image: any mode, upright; may be a reduced copy.
        scale: its size as a share of the original's.

    Returns:
        Keyword arguments for Facts: phash, colours, detail, text_like.
    """
    grey = image.convert("L")
    tiny = image.convert("RGB").resize((4, 4), Image.Resampling.BOX)
    return {
        "phash": perceptual_hash(grey),
        "colours": np.asarray(tiny).tobytes().hex(),
        "detail": scale * sharp_scale(grey),
        "text_like": looks_like_text(grey),
    }


def perceptual_hash(grey: Image.Image) -> int:
    """64 bits: which of the 64 lowest frequencies of the 32x32 picture lie above their median (pHash)."""
    pixels = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
    low = (_COSINES @ pixels @ _COSINES.T).flatten()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def sharp_scale(grey: Image.Image) -> float:
    """The largest of the scales 1, 1/2, 1/4, 1/8 at which edges are sharp; 0 when none is or the picture is plain.

    The measure is the strongest second difference (its 99.9th percentile) over the contrast: it does not depend on
    how much of the picture is plain, so flat drawings count as sharp.
    """
    part = _middle(grey, SIDE)
    for level in range(LEVELS):
        if level:
            part = part.reduce(2)
        if min(part.size) < 8:
            break
        if _edge_strength(np.asarray(part, dtype=np.float32)) >= SHARP:
            return 0.5**level
    return 0.0


def looks_like_text(grey: Image.Image) -> bool:
    """Whether at least six marks of nearly one height stand in one row, as letters do. A hint, not a reader."""
    try:
        from scipy import ndimage  # type: ignore[import-untyped]  # the host brings it; slow to load
    except ImportError:
        return False
    small = grey.copy()
    small.thumbnail((384, 384), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    around = ndimage.uniform_filter(pixels, 25)
    return any(_has_row(ndimage, mark) for mark in (pixels < around - 40, pixels > around + 40))


def _has_row(ndimage: Any, marks: np.ndarray) -> bool:
    labels, count = ndimage.label(marks)
    if not 6 <= count <= 400:  # more is texture: letters of that number would be too small to read here
        return False
    boxes = [
        (rows.stop, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        for rows, columns in ndimage.find_objects(labels)
    ]
    boxes = [b for b in boxes if 6 <= b[2] <= 60 and b[3] <= 1.6 * b[2]]
    if len(boxes) < 6:
        return False
    bottoms, heights = np.array([b[0] for b in boxes]), np.array([b[2] for b in boxes])
    for bottom, height in {(b[0], b[2]) for b in boxes}:
        level = np.abs(bottoms - bottom) <= 0.15 * height
        alike = level & (heights >= 0.7 * height) & (heights <= 1.35 * height)
        if alike.sum() >= 6:
            row = sorted((boxes[i] for i in np.flatnonzero(alike)), key=lambda b: b[1])
            if _evenly_spaced(row, height):
                return True
    return False


def _evenly_spaced(row: list[tuple[int, int, int, int]], height: int) -> bool:
    """Letters follow each other closely: six in a run with gaps below a letter's height, of unlike widths."""
    run = 1
    for left, right in pairwise(row):
        run = run + 1 if -1 <= right[1] - (left[1] + left[3]) <= height else 1
        if run >= 6:
            return len({box[3] for box in row}) >= 3
    return False


def _middle(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
    return image.crop((left, top, left + min(side, width), top + min(side, height)))


def _edge_strength(pixels: np.ndarray) -> float:
    low, high = np.percentile(pixels[::4, ::4], (0.5, 99.5))
    if high - low < 8:  # nothing to be sharp or blurred
        return 0.0
    middle = pixels[1:-1, 1:-1]
    laplacian = np.abs(
        4 * middle - pixels[:-2, 1:-1] - pixels[2:, 1:-1] - pixels[1:-1, :-2] - pixels[1:-1, 2:]
    )
    index = int(0.999 * (laplacian.size - 1))
    return float(np.partition(laplacian, index, axis=None)[index] / (4 * (high - low)))


# Rows 0-7 of the orthogonal DCT-II of length 32
_COSINES = np.cos(np.pi / 32 * (np.arange(32)[None] + 0.5) * np.arange(8)[:, None]).astype(np.float32)
