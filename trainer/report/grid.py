"""Pictures side by side under their labels: stills as one image, videos as one video."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import KilnError

GAP, INK, PAPER = 8, "#222222", "white"
MODES = ("stills", "video")
WIDE_FONTS = (  # with Chinese letters, of Windows, macOS and Linux; the last has accents at least
    "msyh.ttc",
    "simhei.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DejaVuSans.ttf",
)


def comparison_grid(
    cells: Sequence[np.ndarray], labels: Sequence[str], columns: int = 0, mode: str = "stills"
) -> np.ndarray:
    """One labelled grid.

    Args:
        cells: (N, H, W, 3) fp32 in 0..1 each; sizes may differ, smaller ones are centred.
        labels: one per cell.
        columns: cells per row; 0 puts all in one row.
        mode: stills: a cell's N images stand below each other. video: they are frames; a cell that has fewer than the
            longest shows its last one on.

    Returns:
        (F, H', W', 3) fp32 in 0..1; F is 1 for stills.

    Raises:
        KilnError: there is nothing to show, or the labels do not fit.
    """
    if not cells:
        raise KilnError("The comparison grid got no images; connect the sampled images.")
    if len(labels) != len(cells):
        raise KilnError(
            f"The comparison grid got {len(cells)} images and {len(labels)} labels; give each image one label."
        )
    if mode == "stills":
        return _one([np.concatenate(_spaced(cell)) for cell in cells], labels, columns)[None]
    frames = max(len(cell) for cell in cells)
    return np.stack([_one([c[min(i, len(c) - 1)] for c in cells], labels, columns) for i in range(frames)])


def _spaced(cell: np.ndarray) -> list[np.ndarray]:
    gap = np.ones((GAP, cell.shape[2], 3), np.float32)
    return [part for i, image in enumerate(cell) for part in ((gap, image) if i else (image,))]


def _one(pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int) -> np.ndarray:
    width = max(p.shape[1] for p in pictures)
    height = max(p.shape[0] for p in pictures)
    per_row = min(columns or len(pictures), len(pictures))
    font = _font(max(11, min(28, width // 12)), "".join(labels))
    lines = [_wrapped(label, font, width) for label in labels]
    line = round(sum(font.getmetrics()) * 1.1)
    head = line * max(len(each) for each in lines) + GAP
    rows = -(-len(pictures) // per_row)
    image = Image.new("RGB", (per_row * (width + GAP) + GAP, rows * (height + head + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(image)
    for index, (picture, label) in enumerate(zip(pictures, lines, strict=True)):
        x, y = GAP + index % per_row * (width + GAP), GAP + index // per_row * (height + head + GAP)
        for number, text in enumerate(label):
            draw.text((x + width / 2, y + line * number), text, fill=INK, font=font, anchor="mt")
        pixels = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
        image.paste(pixels, (x + (width - pixels.width) // 2, y + head + (height - pixels.height) // 2))
    return np.asarray(image, np.float32) / 255.0


def _font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which knows ASCII only; for other letters the first of the system's that is there."""
    for name in () if text.isascii() else WIDE_FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "pillow without FreeType"
    return font


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The label in lines that fit the cell; a word that is longer than a line is broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
