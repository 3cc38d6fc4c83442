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
    font = ImageFont.load_default(14)
    left, top, right, bottom = MARGIN[0], MARGIN[1], size[0] - MARGIN[2], size[1] - MARGIN[3]
    # The raw curve's rare peaks may leave the picture; the range follows the bulk of it and the whole smooth curve.
    finite = [x for x in losses if math.isfinite(x)]
    smooth = [x if math.isfinite(x) else finite[0] for x in smooth]
    low = min(float(np.percentile(finite, 1)), *smooth)
    high = max(float(np.percentile(finite, 98)), *smooth)
    measured = [v for _, v in validation if math.isfinite(v)]
    ticks = nice_ticks(min([low, *measured]), max([high, *measured]))
    low, high = ticks[0], ticks[-1]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = left + (right - left) * (step - 1) / max(len(losses) - 1, 1)
        return x, bottom - (bottom - top) * (min(max(loss, low), high) - low) / (high - low)

    for tick in ticks:
        y = place(1, tick)[1]
        draw.line([(left, y), (right, y)], fill=GRID)
        draw.text((left - 8, y), f"{tick:.4g}", fill=INK, font=font, anchor="rm")
    for step in sorted({1, *(round(1 + (len(losses) - 1) * i / 5) for i in range(6))}):
        draw.text((place(step, low)[0], bottom + 8), str(step), fill=INK, font=font, anchor="mt")
    for values, colour, width in ((losses, RAW, 1), (smooth, SMOOTH, 3)):
        points = [place(step, value) for step, value in enumerate(values, 1) if math.isfinite(value)]
        draw.line(points * 2 if len(points) == 1 else points, fill=colour, width=width, joint="curve")
    if measured:
        points = [place(max(step, 1), value) for step, value in validation if math.isfinite(value)]
        draw.line(points * 2 if len(points) == 1 else points, fill=HELD_OUT, width=3, joint="curve")
        best = min(validation, key=lambda p: p[1] if math.isfinite(p[1]) else math.inf)
        x, y = place(max(best[0], 1), best[1])
        draw.ellipse([(x - 6, y - 6), (x + 6, y + 6)], outline=HELD_OUT, width=3)
        draw.text((right, 34), "validation loss, its best in a ring", fill=HELD_OUT, font=font, anchor="rt")
    for number, line in enumerate(lines):
        draw.text((12, size[1] + LINE * number - 4), line, fill=INK, font=font)
    draw.text((left, 10), title, fill=INK, font=ImageFont.load_default(18))
    draw.text((left, 36), subtitle, fill=INK, font=font)
    draw.text(((left + right) / 2, size[1] - 12), "step", fill=INK, font=font, anchor="mb")
    draw.text((right, 14), "loss (light) and its smoothed mean (dark)", fill=INK, font=font, anchor="rt")
    return np.asarray(image, dtype=np.float32) / 255.0


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that enclose [low, high]; a flat range is widened."""
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]
