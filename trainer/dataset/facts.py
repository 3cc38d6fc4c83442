"""What is measured of a file once and cached, so that a report reads no pixels.

`measure` works on any picture; the thresholds that turn figures into warnings live in quality.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

SIDE = 768  # detail is measured on at most this many pixels a side, from the middle: enough to judge
SHARP = 0.15  # an edge counts as sharp when its second difference is this share of the picture's contrast
STRIP = 64  # rows that are looked at together
TEXT_SIDE = 384  # about so many pixels along the longer side show writing
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
    grey = image if image.mode == "L" else image.convert("L")
    colour = image if image.mode == "RGB" else image.convert("RGB")
    if not (colour.width % 8 or colour.height % 8):  # the same means, in a third of the time
        colour = colour.reduce(8)
    tiny = colour.resize((4, 4), Image.Resampling.BOX)
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
    how much of the picture is plain, so flat drawings count as sharp. Counting what lies above the bound says whether
    a percentile does, without sorting anything.
    """
    part = _middle(grey, SIDE)
    for level in range(LEVELS):
        if level:
            part = part.reduce(2)
        if min(part.size) < 8:
            break
        if _has_sharp_edges(np.asarray(part)):
            return 0.5**level
    return 0.0


def looks_like_text(grey: Image.Image) -> bool:
    """Whether at least six marks of nearly one height stand in one row, as letters do. A hint, not a reader."""
    try:
        from scipy import ndimage  # type: ignore[import-untyped]  # the host brings it; slow to load
    except ImportError:
        return False
    small = grey.reduce(max(1, round(max(grey.size) / TEXT_SIDE)))
    around = small.filter(ImageFilter.BoxBlur(12))
    differences = (ImageChops.subtract(around, small), ImageChops.subtract(small, around))  # below 0 is 0
    return any(_has_row(ndimage, np.asarray(each) > 40) for each in differences)


def _has_row(ndimage: Any, marks: np.ndarray) -> bool:
    starts = np.count_nonzero(marks[:, 1:] > marks[:, :-1], axis=1)
    if starts.max(initial=0) < 5:  # six marks side by side begin at six places, one perhaps at the edge
        return False
    labels = np.empty(marks.shape, np.int16) if marks.size < 65_000 else np.empty(marks.shape, np.int32)
    count = ndimage.label(marks, output=labels)
    if not 6 <= count <= 400:  # more is texture: letters of that number would be too small to read here
        return False
    sides = [
        (rows.stop, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        for rows, columns in ndimage.find_objects(labels)
    ]
    boxes = np.array(sides, np.float32)  # bottom, left, height, width
    height, width = boxes[:, 2], boxes[:, 3]
    boxes = boxes[(height >= 6) & (height <= 60) & (width <= 1.6 * height)]
    bottom, height = boxes[:, 0], boxes[:, 2]
    level = np.abs(bottom - bottom[:, None]) <= 0.15 * height[:, None]
    alike = level & (height >= 0.7 * height[:, None]) & (height <= 1.35 * height[:, None])
    rows = {tuple(np.flatnonzero(row)): height[i] for i, row in enumerate(alike) if row.sum() >= 6}
    return any(
        _evenly_spaced(sorted(boxes[list(row)].tolist(), key=_left), tall) for row, tall in rows.items()
    )


def _left(box: list[float]) -> float:
    return box[1]


def _evenly_spaced(row: list[list[float]], height: float) -> bool:
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


def _has_sharp_edges(pixels: np.ndarray) -> bool:
    """Of grey levels (H, W) uint8."""
    counts = np.bincount(pixels[::4, ::4].ravel(), minlength=256)
    contrast = _percentile(counts, 99.5) - _percentile(counts, 0.5)
    if contrast < 8:  # nothing to be sharp or blurred
        return False
    bound, above = SHARP * 4 * contrast, 0
    for top in range(0, len(pixels) - 2, STRIP):  # small arrays: fresh memory costs more than the sums
        levels = pixels[top : top + STRIP + 2].astype(np.int16)
        second = levels[1:-1, 1:-1] * 4
        for neighbour in (levels[:-2, 1:-1], levels[2:, 1:-1], levels[1:-1, :-2], levels[1:-1, 2:]):
            second -= neighbour
        above += np.count_nonzero(np.abs(second) >= bound)
    size = (pixels.shape[0] - 2) * (pixels.shape[1] - 2)
    return above >= size - int(0.999 * (size - 1))


def _percentile(counts: np.ndarray, percent: float) -> float:
    """Of values 0, 1, 2, ... that occur so often, between its neighbours as numpy takes it."""
    place = percent / 100 * (counts.sum() - 1)
    below, above = np.searchsorted(np.cumsum(counts), (int(place) + 1, min(int(place) + 2, counts.sum())))
    return float(below + (above - below) * (place - int(place)))


# Rows 0-7 of the orthogonal DCT-II of length 32
_COSINES = np.cos(np.pi / 32 * (np.arange(32)[None] + 0.5) * np.arange(8)[:, None]).astype(np.float32)
