"""Moving WebP and AVIF through Pillow: PyAV's libraries read neither as a clip. One frame is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ..errors import KilnError
from .pixels import MAX_PIXELS, UNREADABLE, flatten, shown, to_rgb


def timed_pictures(path: Path) -> Iterator[tuple[float, Image.Image]]:
    """Every frame, RGB on white, with its time in seconds.

    Raises:
        KilnError: the file cannot be decoded, or its frames are too large.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise KilnError(
                    f"The video {shown(path)} has {opened.width}x{opened.height} pixels; scale it down or remove it."
                )
            for number in range(getattr(opened, "n_frames", 1)):
                opened.seek(number)
                opened.load()  # the time of a frame is known once it is decoded
                # A copy: the next seek changes the pixels of what is open
                yield opened.info.get("timestamp", 0) / 1000, flatten(to_rgb(opened.copy()))
    except UNREADABLE as error:
        if isinstance(error, KilnError):
            raise
        raise KilnError(f"The video {shown(path)} cannot be read ({error}); replace or remove it.") from error
