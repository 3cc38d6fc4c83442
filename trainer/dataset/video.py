"""Reading clips through PyAV, one frame in memory at a time until it has its training size.

PyAV comes with the host; without it stills still work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..errors import KilnError
from .pixels import MIN_SIDE, shown

T = TypeVar("T")


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's container and first frame tell."""

    first: Image.Image  # upright RGB
    frames: int
    fps: float


def probe_clip(path: Path) -> ClipInfo:
    """Count the frames without decoding them, and decode the first.

    Raises:
        KilnError: no video stream, no frame, or not decodable.
    """
    with _opened(path) as (container, stream):
        first = next(_pictures(container, stream), None)
        if first is None:
            raise KilnError(f"The video {shown(path)} has no frames; replace or remove it.")
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        frames = stream.frames
    if not frames:  # webm, mkv and gif do not say: count packets
        with _opened(path) as (container, stream):
            frames = sum(1 for packet in container.demux(stream) if packet.size)
    if min(first.size) < MIN_SIDE:
        raise KilnError(
            f"The video {shown(path)} has {first.width}x{first.height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are "
            "needed. Remove it."
        )
    return ClipInfo(first, max(frames, 1), fps)


def pick_frames(available: int, fps: float, wanted: int, wanted_fps: float) -> list[int]:
    """Which of a clip's frames are trained on: a piece of its middle, at the training's frame rate.

    Args:
        available: frames in the file.
        fps: of the file; 0 when unknown.
        wanted: frames to take.
        wanted_fps: frame rate of training; 0 takes every frame.
    """
    stride = fps / wanted_fps if fps and wanted_fps and fps > wanted_fps else 1.0
    span = (wanted - 1) * stride
    start = max(0.0, (available - 1 - span) / 2)
    return [min(available - 1, int(start + i * stride + 0.5)) for i in range(wanted)]


def usable_frames(available: int, fps: float, wanted_fps: float) -> int:
    """How many frames a clip has at the training's frame rate."""
    stride = fps / wanted_fps if fps and wanted_fps and fps > wanted_fps else 1.0
    return int((available - 1) / stride + 1e-6) + 1


def read_frames(path: Path, numbers: list[int], change: Callable[[Image.Image], T]) -> list[T]:
    """The frames of these rising numbers, each passed through `change` as it is decoded (to make it small).

    A clip that ends early (a wrong count in its header) gives its last frame for the rest.

    Raises:
        KilnError: the clip cannot be decoded.
    """
    wanted, found = set(numbers), {}
    with _opened(path) as (container, stream):
        for number, frame in enumerate(_pictures(container, stream)):
            if number in wanted:
                found[number] = change(frame)
            if number >= numbers[-1]:
                break
    if not found:
        raise KilnError(f"The video {shown(path)} ends before the frames that are needed; replace it.")
    last = found[max(found)]
    return [found.get(n, last) for n in numbers]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError as error:
        raise KilnError("Reading videos needs the package av; install it, or remove the videos.") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise KilnError(f"The video {shown(path)} has no picture stream; replace or remove it.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        if isinstance(error, KilnError):
            raise
        raise KilnError(f"The video {shown(path)} cannot be read ({error}); replace or remove it.") from error


def _pictures(container: Any, stream: Any) -> Iterator[Image.Image]:
    for frame in container.decode(stream):
        picture = frame.to_image()
        turn = round(getattr(frame, "rotation", 0)) % 360  # phones store how they were held
        yield picture.rotate(turn, expand=True) if turn else picture
