"""A picture with its mask for an editor that paints on alpha, and the mask out of what it gives back.

As in the host's mask editor, what is painted is transparent, and painted parts count for the loss. So they do in its
Load Image, whose mask is white where the picture is transparent.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageChops

from ..errors import KilnError
from .pixels import MAX_PIXELS, flatten, is_clip, open_still, read_mask, shown
from .video import read_frames

MOST_SIDE = 2048  # pixels of what is painted on


def paintable(media: Path, mask: Path | None) -> Image.Image:
    """The picture, or a clip's first frame, as RGBA: transparent where the loss counts already.

    Args:
        media: an image or clip.
        mask: its mask file; None: its own transparency is the mask, or it has none and nothing is painted.

    Raises:
        KilnError: one of them cannot be read.
    """
    if is_clip(media):
        picture = read_frames(media, [0], lambda frame: frame)[0]
    else:
        picture = open_still(media)[0]
    counts = None
    if mask is not None:
        counts = read_mask(mask).resize(picture.size)
    elif picture.mode == "RGBA":
        counts = picture.getchannel("A")
    page = flatten(picture)
    page.putalpha(Image.new("L", page.size, 255) if counts is None else ImageChops.invert(counts))
    if max(page.size) > MOST_SIDE:  # premultiplied resizing would lose what lies under painted parts
        scale = MOST_SIDE / max(page.size)
        size = (max(1, round(page.width * scale)), max(1, round(page.height * scale)))
        colours, alpha = page.convert("RGB").resize(size), page.getchannel("A").resize(size)
        page = colours.convert("RGBA")
        page.putalpha(alpha)
    return page


def mask_from_painting(data: bytes) -> bytes:
    """A PNG that is white where a painted PNG is transparent.

    Raises:
        KilnError: it is no PNG of a fair size, or nothing is painted.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise KilnError(f"The painted mask has {opened.width}x{opened.height} pixels; scale it down.")
            opened.load()
            painted = ImageChops.invert(opened.convert("RGBA").getchannel("A"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, KilnError):
            raise
        raise KilnError(f"The painted mask cannot be read ({error}); paint it again.") from error
    strongest = painted.getextrema()[1]
    if not strongest:
        raise KilnError("Nothing is painted, so nothing would be learned; paint what shall count.")
    painted = painted.point(lambda value: value * 255 // strongest)  # the editor's brush begins at 70 %
    out = io.BytesIO()
    painted.save(out, "PNG", optimize=True)
    return out.getvalue()


def save_painting(media: Path, mask: Path | None, target: Path) -> None:
    """Write `paintable` as a PNG.

    Raises:
        KilnError: it cannot be read, or not be written.
    """
    picture = paintable(media, mask)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, "PNG", compress_level=1)
    except OSError as error:
        raise KilnError(
            f"Cannot write {shown(target)} ({error}); check free space and write permission."
        ) from error
