"""Pictures of a dataset: a labelled sheet with the problems framed, control pictures beside what is made from them; the
variants of an augmentation in rows; and pictures that are pointed out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import KilnError
from .buckets import BucketOptions, bucket_of
from .items import Dataset
from .loading import load_pixels, read_thumbnail
from .quality import Problem

SIDE, GAP, COLUMNS = 176, 14, 8  # pixels, pixels, tiles
LABEL = 54  # pixels below a tile: three lines
MOST_TILES = 80
INK, PAPER, GREY = "#222222", "white", "#8a8a8a"
SEVERE, MILD, FINE, MISSING = "#d22f27", "#e69100", "#cfcfcf", "#6b6b6b"


def contact_sheet(dataset: Dataset, problems: Sequence[Problem], title: str) -> np.ndarray:
    """Tiles in the order of the items; those with problems first come into the sheet when there are too many.

    Red frames: worth leaving out. Orange: worth a look. Dark tiles at the end: files that were left out. Where items
    have control pictures, each item is a group in one row: its controls in their order, then itself.

    Returns:
        (H, W, 3) fp32 in 0..1.
    """
    found: dict[int, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.item, []).append(problem)
    group = 1 + max((len(item.controls) for item in dataset.items), default=0)  # tiles of an item
    shown = _choose(len(dataset.items), found, max(1, MOST_TILES // group))
    left_out = dataset.skipped[: max(0, MOST_TILES - len(shown) * group) or COLUMNS]
    count = len(shown) * group + len(left_out)
    columns = max(min(COLUMNS, max(count, 4)) // group, 1) * group
    page, draw = _page(count, columns)
    more = len(dataset.items) - len(shown)
    note = f"{title}; {more} more items are not shown" if more else title
    if group > 1:
        note = f"controls, then the item; {note}"
    _write(draw, (GAP, GAP), note, columns * (SIDE + GAP), 16)
    for place, index in enumerate(shown):
        item = dataset.items[index]
        tile = (place + 1) * group - 1
        for number, control in enumerate(item.controls):
            x, y = corner = _corner(tile - len(item.controls) + number, columns)
            lines = [control.path.name, f"{control.facts.width}x{control.facts.height} control"]
            _tile(page, draw, corner, _thumbnail(control.path, control.facts.frames), FINE, lines)
            draw.rectangle((x + SIDE, y + SIDE // 2 - 3, x + SIDE + GAP, y + SIDE // 2 + 3), fill=MISSING)
        picture = _thumbnail(item.path, item.facts.frames)
        wrong = found.get(index, [])
        frame = SEVERE if any(p.severe for p in wrong) else MILD if wrong else FINE
        frames = f" {item.facts.frames}f" if item.facts.frames > 1 else ""
        mask = " mask" if item.masked else ""
        role = "" if item.role == "subject" else f" {item.role}"
        lines = [
            f"{index + 1}. {item.path.name}",
            f"{item.facts.width}x{item.facts.height}{frames}{mask}{role}",
            ", ".join(p.kind for p in wrong),
        ]
        _tile(page, draw, _corner(tile, columns), picture, frame, lines)
    for tile, reason in enumerate(left_out, len(shown) * group):
        corner = _corner(tile, columns)
        _tile(page, draw, corner, Image.new("RGB", (SIDE, SIDE), MISSING), SEVERE, ["left out"])
        _write_block(draw, corner, _short(reason))
    return np.asarray(page, dtype=np.float32) / 255


@dataclass(frozen=True)
class Pointed:
    """A picture that is pointed out."""

    path: Path | None  # of a still or clip; None where it is not known
    lines: tuple[str, ...]  # below it, at most three
    severe: bool  # framed


def pointed_sheet(rows: Sequence[tuple[str, Sequence[Pointed]]]) -> np.ndarray:
    """Pictures in rows, each under its heading, which is written in the row above.

    Returns:
        (H, W, 3) fp32 in 0..1.
    """
    columns = max(4, *(len(tiles) for _, tiles in rows))
    page, draw = _page(len(rows) * columns, columns)
    for row, (heading, tiles) in enumerate(rows):
        for column, pointed in enumerate(tiles):
            picture = _thumbnail(pointed.path, 1)
            frame = MILD if pointed.severe else FINE
            _tile(page, draw, _corner(row * columns + column, columns), picture, frame, pointed.lines)
        left, top = _corner(row * columns, columns)
        _write(draw, (left, top - 26), heading, columns * (SIDE + GAP), 16)
    return np.asarray(page, dtype=np.float32) / 255


def _thumbnail(path: Path | None, frames: int) -> Image.Image:
    try:
        if path is not None:
            return read_thumbnail(path, frames, SIDE)
    except KilnError:  # removed since it was scanned
        pass
    return Image.new("RGB", (SIDE, SIDE), MISSING)


def variants_sheet(dataset: Dataset, options: BucketOptions, items: int = 4, variants: int = 6) -> np.ndarray:
    """The first items, a row each: the item itself and some of its augmented variants.

    Returns:
        (H, W, 3) fp32 in 0..1.

    Raises:
        KilnError: an item cannot be read any more.
    """
    chosen = [i for i in dataset.items if i.augmentation is not None][:items]
    columns = 1 + min(variants, max(i.augmentation.variants for i in chosen if i.augmentation))
    page, draw = _page(len(chosen) * columns, columns)
    _write(draw, (GAP, GAP), "left: as it is; then variants", columns * (SIDE + GAP), 16)
    for row, item in enumerate(chosen):
        plain = read_thumbnail(item.path, item.facts.frames, SIDE)
        _tile(page, draw, _corner(row * columns, columns), plain, FINE, [item.path.name])
        for variant in range(columns - 1):
            frames = load_pixels(item, bucket_of(item, options), options.fps, variant).frames
            picture = Image.fromarray((frames[len(frames) // 2] * 255).round().astype(np.uint8))
            picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
            corner = _corner(row * columns + variant + 1, columns)
            _tile(page, draw, corner, picture, FINE, [f"variant {variant + 1}"])
    return np.asarray(page, dtype=np.float32) / 255


def _choose(count: int, found: dict[int, list[Problem]], most: int) -> list[int]:
    first = sorted(range(count), key=lambda i: (i not in found, i))[:most]
    return sorted(first)


def _page(count: int, columns: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    rows = -(-count // columns)
    size = (columns * (SIDE + GAP) + GAP, 28 + rows * (SIDE + LABEL + GAP) + GAP)
    page = Image.new("RGB", size, PAPER)
    return page, ImageDraw.Draw(page)


def _corner(tile: int, columns: int) -> tuple[int, int]:
    row, column = divmod(tile, columns)
    return GAP + column * (SIDE + GAP), 28 + GAP + row * (SIDE + LABEL + GAP)


def _tile(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    picture: Image.Image,
    frame: str,
    lines: Sequence[str],
) -> None:
    x, y = corner
    if max(picture.size) < SIDE:
        scale = SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.NEAREST)
    page.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
    width = 2 if frame == FINE else 5
    draw.rectangle(
        (x - width, y - width, x + SIDE + width - 1, y + SIDE + width - 1), outline=frame, width=width
    )
    for number, line in enumerate(lines):
        colour = INK if number == 0 else GREY if number == 1 or frame == FINE else frame
        _write(draw, (x, y + SIDE + 5 + 16 * number), line, SIDE, 13, colour)


def _write(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, width: int, size: int, colour: str = INK
) -> None:
    """One line, cut to a width. The font that pillow brings knows Latin letters only: others become question marks."""
    font = ImageFont.load_default(size)
    line = _latin(text)
    while line and draw.textlength(line, font=font) > width:
        line = line[:-4] + "..." if len(line) > 8 else line[:-1]
    draw.text(position, line, fill=colour, font=font)


def _write_block(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    font, line, y = ImageFont.load_default(13), "", corner[1] + 8
    for word in _latin(text).split():
        while draw.textlength(word, font=font) > SIDE - 16:
            word = word[:-4] + "..." if len(word) > 8 else word[:-1]
        if draw.textlength(f"{line} {word}", font=font) > SIDE - 16:
            draw.text((corner[0] + 8, y), line, fill="white", font=font)
            line, y = "", y + 17
            if y > corner[1] + SIDE - 18:
                return
        line = f"{line} {word}".strip()
    draw.text((corner[0] + 8, y), line, fill="white", font=font)


def _short(reason: str) -> str:
    """A reason with file names in place of whole paths."""
    return " ".join(word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in reason.split(" "))


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")
