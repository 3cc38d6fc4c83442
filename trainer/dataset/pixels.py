"""Opening stills: upright, RGB, with what is transparent as a mask; never more memory than a fair picture needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import KilnError
from .files import HEIF_ENDINGS, JXL_ENDINGS, VIDEO_ENDINGS, ending

T = TypeVar("T")

MAX_PIXELS = 89_478_485
"""Larger stills are refused by their header, before anything is decoded (pillow's own limit, where it warns)."""

MIN_SIDE = 16
"""Pixels; the smallest side that can be trained on."""

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    OverflowError,
    MemoryError,
)


MAX_PNG_BYTES = 1 << 30
"""Of a png whose notes pillow refuses and which is therefore read without them."""

# What is needed of a png to show it: no text, no colour profile
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"acTL", b"fcTL", b"fdAT"))
ANIMATED_WITHIN = 1 << 16
"""Bytes of a png in which its chunk acTL is looked for, which stands before the pixels."""

_SEVERAL = (
    "MPO",
    "HEIF",
    "PSD",
)  # a photo with a preview, more shots or layers behind it: the first is the picture


def shown(path: Path) -> str:
    """A path for messages: names that are not valid text keep their readable part."""
    return str(path).encode("utf-8", "replace").decode()


def open_still(
    path: Path, at_least: int = 0, smallest: int = MIN_SIDE
) -> tuple[Image.Image, tuple[int, int]]:
    """One image, upright, as RGB or RGBA (RGBA only when some of it is transparent).

    Args:
        path: an image file.
        at_least: pixels; a jpeg may be decoded smaller as long as its shorter side keeps this many. 0: full size.
        smallest: pixels; the shorter side of the smallest image that is taken.

    Returns:
        The image, and its full size (width, height) when upright.

    Raises:
        KilnError: the file cannot be decoded, moves, or is too large or too small.
    """

    def read(opened: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
        _check_header(opened, path, smallest)
        full = opened.size
        if at_least and opened.format == "JPEG":
            shrink = max(1, min(full) // at_least)
            opened.draft(None, (full[0] // shrink, full[1] // shrink))
        wide = opened.width > opened.height
        ImageOps.exif_transpose(opened, in_place=True)
        if (opened.width > opened.height) != wide:
            full = (full[1], full[0])
        opened.load()
        return to_rgb(opened), full

    _learn(ending(path.name), path)
    try:
        return _with_opened(path, read)
    except Image.DecompressionBombError as error:  # pillow refuses before we see the size
        found = re.search(r"\d+ pixels", str(error))
        raise KilnError(_too_large(path, found[0] if found else "too many pixels")) from error
    except UnidentifiedImageError as error:
        if path.stat().st_size == 0:
            raise KilnError(
                f"The image {shown(path)} cannot be read (it is empty); replace or remove it."
            ) from error
        raise KilnError(
            f"The image {shown(path)} cannot be read (it is no image, or of a kind that is not known here); replace or "
            "remove it."
        ) from error
    except UNREADABLE as error:
        if isinstance(error, KilnError):
            raise
        raise KilnError(
            f"The image {shown(path)} cannot be read ({error or type(error).__name__}); replace or remove it."
        ) from error


def is_clip(path: Path) -> bool:
    """Whether a file is a video, or a picture that moves."""
    return ending(path.name) in VIDEO_ENDINGS or is_animation(path)


def is_animation(path: Path) -> bool:
    """Whether a gif, png, webp or avif moves, so that it is a clip."""
    kind = ending(path.name)
    try:
        if kind in (".png", ".apng"):
            with open(path, "rb") as file:
                head = file.read(ANIMATED_WITHIN)
            return b"acTL" in head.partition(b"IDAT")[0]
        if kind == ".gif":
            with Image.open(path) as opened:
                return bool(getattr(opened, "is_animated", False))
        return is_moving_image(path)
    except Exception:  # open_still will say what is wrong with it
        return False


def is_moving_image(path: Path) -> bool:
    """Whether this is a webp or avif that moves, which moving_images.py reads.

    Raises:
        OSError: the file cannot be opened.
    """
    kind = ending(path.name)
    if kind not in (".webp", ".avif"):
        return False
    with open(path, "rb") as file:
        head = file.read(32)
    if kind == ".avif":
        return head[4:12] == b"ftypavis"
    # A bit among the flags of the chunk VP8X: developers.google.com/speed/webp/docs/riff_container
    return head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 0x02)


def read_pixels(path: Path, at_least: int = 0) -> Image.Image:
    """One image as RGB, upright; transparency is laid on white. `at_least` as in open_still.

    Raises:
        KilnError: the file cannot be decoded.
    """
    return flatten(open_still(path, at_least)[0])


def flatten(image: Image.Image) -> Image.Image:
    """RGB or RGBA -> RGB on white."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page


def read_mask(path: Path) -> Image.Image:
    """A mask file as grey, of any size: white counts. Its transparency, where it has any, is the mask instead.

    Raises:
        KilnError: the file cannot be decoded.
    """
    image = open_still(path, smallest=1)[0]
    return image.getchannel("A") if image.mode == "RGBA" else image.convert("L")


def _with_opened(path: Path, read: Callable[[Image.Image], T]) -> T:
    """Read from an opened image file. A png whose text or profile is too large for pillow is read without them, as the
    host's Load Image does: large workflows and printers' profiles are no reason to lose a picture."""
    try:
        with Image.open(path) as opened:
            return read(opened)
    except ValueError as error:
        if not re.search("MAX_TEXT|text chunks|iCCP", str(error)):
            raise
    with Image.open(BytesIO(_bare_png(path))) as opened:
        return read(opened)


def _bare_png(path: Path) -> bytes:
    """A png without its notes; what these would unpack to is never unpacked."""
    if path.stat().st_size > MAX_PNG_BYTES:
        raise KilnError(f"The image {shown(path)} is larger than 1 GiB; save it again without its notes.")
    data = path.read_bytes()
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in _PNG_CHUNKS:
            parts.append(data[place:end])
        place = end
    return b"".join(parts)


def _learn(kind: str, path: Path) -> None:
    """Teach pillow a kind of file that an optional package reads.

    Raises:
        KilnError: the package is not there.
    """
    if kind in HEIF_ENDINGS and not _has_package("pillow_heif", ".heic"):
        raise KilnError(
            f"The image {shown(path)} needs the package pillow-heif; install it, or save the image as jpg or png."
        )
    if kind in JXL_ENDINGS and not _has_package("pillow_jxl", ".jxl"):
        raise KilnError(
            f"The image {shown(path)} needs the package pillow-jxl-plugin; install it, or save the image as jpg or png."
        )


@cache
def _has_package(name: str, kind: str) -> bool:
    """Whether pillow can read a kind of file, with the help of a package where it needs one."""
    Image.init()
    if Image.EXTENSION.get(kind) in Image.OPEN:
        return True
    try:
        package = import_module(name)
    except Exception:  # not installed, or not for this system or version of pillow
        return False
    register = getattr(
        package, "register_heif_opener", None
    )  # pillow_jxl registers itself when it is imported
    if register is not None:
        register()
    return True


def _check_header(opened: Image.Image, path: Path, smallest: int) -> None:
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise KilnError(_too_large(path, f"{width}x{height} pixels"))
    if min(width, height) < smallest:
        raise KilnError(
            f"The image {shown(path)} has {width}x{height} pixels; at least {smallest}x{smallest} are needed. "
            "Remove it or replace it by a larger one."
        )
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format not in _SEVERAL:
        raise KilnError(
            f"The image {shown(path)} holds {frames} pictures; save an animation as mp4, gif or apng, and pages as "
            "single images."
        )


def _too_large(path: Path, size: str) -> str:
    most = MAX_PIXELS // 1_000_000
    return f"The image {shown(path)} has {size}; at most {most} million are read. Scale it down."


def to_rgb(image: Image.Image) -> Image.Image:
    """Of any mode, as RGB, or as RGBA where some of it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        lowest = rgba.getchannel("A").getextrema()[0]
        return rgba if isinstance(lowest, int) and lowest < 255 else rgba.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey: pillow's own conversion would cut everything above 255 off."""
    values = np.asarray(image).astype(np.float32)
    highest = float(np.nan_to_num(values).max(initial=0.0))
    white = 255.0 if highest <= 255 else 65535.0 if highest <= 65535 else highest
    if image.mode.startswith("I;16"):
        white = 65535.0
    elif image.mode == "F" and highest <= 1:
        white = 1.0
    return Image.fromarray((np.nan_to_num(values) / white * 255).clip(0, 255).round().astype(np.uint8))
