"""The loss curve as a picture, drawn with pillow (no plotting library for one line chart)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = (70, 66, 24, 50)  # left, top, right, bottom, pixels
INK, GRID, RAW, SMOOTH, HELD_OUT = "#222222", "#dddddd", "#a8c8e8", "#1f5fa8", "#c8641e"
LINE = 20  # pixels of a line of notes


def loss_plot(
    losses: Sequence[float],
    smooth: Sequence[float],
    title: str,
    subtitle: str = "",
    size: tuple[int, int] = (960, 540),
    validation: Sequence[tuple[int, float]] = (),
    notes: Sequence[str] = (),
) -> np.ndarray:
    """Raw and smoothed loss over steps.

    Args:
        losses: one per step, nan where it was skipped, at least one finite; may be a single one.
        smooth: same length.
        title, subtitle: two lines above the chart.
        size: width and height of the chart in pixels.
        validation: (step, loss) of the held-out items; step 0 is before training.
        notes: sentences below the chart, for which the picture grows.

    Returns:
        (H, W, 3) fp32 in 0..1.
    """
    lines = [line for note in notes for line in textwrap.wrap(note, size[0] // 7)]
    image = Image.new("RGB", (size[0], size[1] + LINE * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    # The raw curve's rare peaks may leave the picture; the range follows the bulk of it and the whole smooth curve.
    finite = [x for x in losses if math.isfinite(x)]
    smooth = [x if math.isfinite(x) else finite[0] for x in smooth]
    low = min(float(np.percentile(finite, 1)), *smooth)
    high = max(float(np.percentile(finite, 98)), *smooth)
    measured = [(max(step, 1), loss) for step, loss in validation if math.isfinite(loss)]
    values = [loss for _, loss in measured]
    axes = _Axes(draw, size, len(losses), nice_ticks(min([low, *values]), max([high, *values])))
    axes.draw()
    axes.curve(list(enumerate(losses, 1)), RAW, 1)
    axes.curve(list(enumerate(smooth, 1)), SMOOTH, 3)
    if measured:
        axes.curve(measured, HELD_OUT, 3)
        axes.ring(*min(measured, key=lambda p: p[1]), HELD_OUT)
    _write_texts(draw, size, title, subtitle, lines, bool(measured))
    return np.asarray(image, dtype=np.float32) / 255.0


class _Axes:
    """Steps from left to right, losses from bottom to top, inside MARGIN."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, size: tuple[int, int], steps: int, ticks: Sequence[float]
    ) -> None:
        self._draw, self._steps, self._ticks = draw, steps, ticks
        self._left, self._top = MARGIN[0], MARGIN[1]
        self._right, self._bottom = size[0] - MARGIN[2], size[1] - MARGIN[3]

    def _pixel(self, step: float, loss: float) -> tuple[float, float]:
        low, high = self._ticks[0], self._ticks[-1]
        share = (min(max(loss, low), high) - low) / (high - low)
        x = self._left + (self._right - self._left) * (step - 1) / max(self._steps - 1, 1)
        return x, self._bottom - (self._bottom - self._top) * share

    def draw(self) -> None:
        """Grid lines and numbers."""
        font = ImageFont.load_default(14)
        for tick in self._ticks:
            y = self._pixel(1, tick)[1]
            self._draw.line([(self._left, y), (self._right, y)], fill=GRID)
            self._draw.text((self._left - 8, y), f"{tick:.4g}", fill=INK, font=font, anchor="rm")
        for step in sorted({1, *(round(1 + (self._steps - 1) * i / 5) for i in range(6))}):
            x = self._pixel(step, self._ticks[0])[0]
            self._draw.text((x, self._bottom + 8), str(step), fill=INK, font=font, anchor="mt")

    def curve(self, points: Sequence[tuple[int, float]], colour: str, width: int) -> None:
        """points: (step, loss); those that are not finite are left out, and a single one is a dot."""
        pixels = [self._pixel(step, loss) for step, loss in points if math.isfinite(loss)]
        self._draw.line(pixels * 2 if len(pixels) == 1 else pixels, fill=colour, width=width, joint="curve")

    def ring(self, step: int, loss: float, colour: str) -> None:
        x, y = self._pixel(step, loss)
        self._draw.ellipse([(x - 6, y - 6), (x + 6, y + 6)], outline=colour, width=3)


def _write_texts(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    title: str,
    subtitle: str,
    notes: Sequence[str],
    validated: bool,
) -> None:
    font = ImageFont.load_default(14)
    left, right = MARGIN[0], size[0] - MARGIN[2]
    if validated:
        draw.text((right, 34), "validation loss, its best in a ring", fill=HELD_OUT, font=font, anchor="rt")
    for number, line in enumerate(notes):
        draw.text((12, size[1] + LINE * number - 4), line, fill=INK, font=font)
    draw.text((left, 10), title, fill=INK, font=ImageFont.load_default(18))
    draw.text((left, 36), subtitle, fill=INK, font=font)
    draw.text(((left + right) / 2, size[1] - 12), "step", fill=INK, font=font, anchor="mb")
    draw.text((right, 14), "loss (light) and its smoothed mean (dark)", fill=INK, font=font, anchor="rt")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that enclose [low, high]; a flat range is widened."""
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]
