"""Reading clips through PyAV, and what it does not know through Pillow: one frame in memory at a time until it has its
training size.

A clip plays at its own speed: frames are chosen by their time stamps. One that is slower than training shows each
frame for as long as it stands. PyAV comes with the host; without it stills still work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..errors import KilnError
from .moving_images import timed_pictures
from .pixels import MIN_SIDE, is_moving_image, shown

T = TypeVar("T")

SAME_SPEED = 0.05
"""A clip slower than training by less than this share plays every frame: a repeated frame would show more."""
ROUNDING = 0.002
"""Seconds by which containers round time stamps."""
MIDDLE = 0.5
"""Of the room that a clip leaves around the piece that is trained on: 0 its start, 1 its end."""


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's container and first frame tell."""

    first: Image.Image  # upright RGB
    frames: int
    fps: float  # on average, from the first frame to the last
    even: bool  # all frames stand equally long


def probe_clip(path: Path) -> ClipInfo:
    """Count the frames and read their times without decoding them, and decode the first.

    Raises:
        KilnError: no video stream, no frame, or not decodable.
    """
    first, times, rate = _probe_moving_image(path) if is_moving_image(path) else _probe_video(path)
    if first is None:
        raise KilnError(f"The video {shown(path)} has no frames; replace or remove it.")
    if min(first.size) < MIN_SIDE:
        raise KilnError(
            f"The video {shown(path)} has {first.width}x{first.height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are "
            "needed. Remove it."
        )
    return ClipInfo(first, max(len(times), 1), *_pace([t for t in times if t is not None], len(times), rate))


def _probe_video(path: Path) -> tuple[Image.Image | None, list[float | None], float]:
    """The first frame, each frame's time in seconds, and the rate that the container states."""
    with _opened(path) as (container, stream):
        first = next((_upright(frame) for frame in container.decode(stream)), None)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    with _opened(path) as (container, stream):
        packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
        return (
            first,
            [None if p.pts is None else float(p.pts * (p.time_base or Fraction(1))) for p in packets],
            rate,
        )


def _probe_moving_image(path: Path) -> tuple[Image.Image | None, list[float | None], float]:
    first: Image.Image | None = None
    times: list[float | None] = []
    for time, picture in timed_pictures(path):
        first = first or picture
        times.append(time)
    return first, times, 0.0


def _pace(times: list[float], frames: int, rate: float) -> tuple[float, bool]:
    """Frames per second on average, and whether they are evenly spaced.

    Args:
        times: of the frames in seconds, in any order; where some are not known, `rate` is taken.
        frames: how many there are.
        rate: that the container states, or 0.
    """
    times = sorted(times)
    if frames < 2 or len(times) < frames or times[-1] <= times[0]:
        return rate, True
    fps = (frames - 1) / (times[-1] - times[0])
    even = all(abs(time - times[0] - n / fps) <= 0.6 / fps for n, time in enumerate(times))
    # Containers round time stamps; a stated rate that fits is the exact one
    return (rate if rate and abs(rate / fps - 1) < 0.01 else fps), even


def stride_of(fps: float, wanted_fps: float) -> float:
    """Frames of the file from one trained frame to the next; 1 where either rate is unknown or every one is taken."""
    if not fps or not wanted_fps or wanted_fps * (1 - SAME_SPEED) <= fps <= wanted_fps:
        return 1.0
    return fps / wanted_fps


def pick_frames(
    available: int, fps: float, wanted: int, wanted_fps: float, place: float = MIDDLE
) -> list[int]:
    """Which of an evenly spaced clip's frames are trained on, at the training's frame rate; a slow clip's repeatedly.

    Args:
        available: frames in the file.
        fps: of the file; 0 when unknown.
        wanted: frames to take.
        wanted_fps: frame rate of training; 0 takes every frame.
        place: where the piece lies, from 0 (the start) to 1 (the end).
    """
    stride = stride_of(fps, wanted_fps)
    start = _start(available - 1, (wanted - 1) * stride, place)
    return [min(available - 1, int(start + i * stride + 0.5)) for i in range(wanted)]


def pick_times(
    available: int, fps: float, wanted: int, wanted_fps: float, place: float = MIDDLE
) -> list[float]:
    """The same as times in seconds from the clip's first frame on; both rates must be known."""
    step = stride_of(fps, wanted_fps) / fps
    start = _start((available - 1) / fps, (wanted - 1) * step, place)
    return [start + i * step for i in range(wanted)]


def usable_frames(available: int, fps: float, wanted_fps: float) -> int:
    """How many frames a clip has at the training's frame rate."""
    return int((available - 1) / stride_of(fps, wanted_fps) + 1e-6) + 1


def read_frames(path: Path, numbers: Sequence[int], change: Callable[[Image.Image], T]) -> list[T]:
    """The frames of these rising numbers, each passed through `change` as it is decoded (to make it small).

    A clip that ends early (damaged, or a wrong count) gives its last frame for the rest.

    Raises:
        KilnError: the clip cannot be decoded.
    """
    wanted, found = set(numbers), {}
    with closing(_frames(path)) as frames:
        for number, (_, frame) in enumerate(frames):
            if number in wanted:
                found[number] = change(_upright(frame))
            if number >= numbers[-1]:
                break
    if not found:
        raise KilnError(f"The video {shown(path)} ends before the frames that are needed; replace it.")
    last = found[max(found)]
    return [found.get(n, last) for n in numbers]


def read_times(path: Path, times: Sequence[float], change: Callable[[Image.Image], T]) -> list[T]:
    """What stands at these rising times (seconds from the first frame on), each passed through `change`.

    Raises:
        KilnError: the clip cannot be decoded.
    """
    found: list[T] = []
    standing: _Once | None = None
    with closing(_frames(path, times[0])) as frames:
        for time, frame in frames:
            while standing is not None and len(found) < len(times) and times[len(found)] < time - ROUNDING:
                found.append(standing.result())
            if len(found) == len(times):
                break
            standing = _Once(frame, change)
        while standing is not None and len(found) < len(times):
            found.append(standing.result())
    if not found:
        raise KilnError(f"The video {shown(path)} ends before the frames that are needed; replace it.")
    return found


def _frames(path: Path, wanted: float = 0.0) -> Generator[tuple[float, Any], None, None]:
    """Frames with their time in seconds since the first one, from the start or a place before a wanted time on."""
    if is_moving_image(path):
        yield from timed_pictures(path)
    else:
        with _opened(path) as (container, stream):
            yield from _frames_from(container, stream, wanted)


def _frames_from(container: Any, stream: Any, wanted: float) -> Iterator[tuple[float, Any]]:
    """Frames with their time since the first one, from the last key frame before a wanted time on."""
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None:
        return
    begin = first.time
    if begin is not None and wanted >= 1:  # worth a jump
        container.seek(int((begin + wanted) / stream.time_base), stream=stream)
        after = container.decode(stream)
        landed = next(after, None)
        if landed is not None and landed.time is not None and landed.time <= begin + wanted + ROUNDING:
            first, frames = landed, after
        else:  # beyond it, or nowhere: from the start
            container.seek(first.pts, stream=stream)
            frames = container.decode(stream)
            first = next(frames, first)
    for frame in chain((first,), frames):
        yield (0.0 if frame.time is None or begin is None else frame.time - begin), frame


class _Once:
    """A frame that is converted when it is asked for, and once."""

    def __init__(self, frame: Any, change: Callable[[Image.Image], T]) -> None:
        self._frame, self._change = frame, change

    def result(self) -> Any:
        if self._frame is not None:
            self._value, self._frame = self._change(_upright(self._frame)), None
        return self._value


def _start(span: float, piece: float, place: float) -> float:
    return max(0.0, (span - piece) * place)


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


def _upright(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame
    picture = frame.to_image()
    turn = round(getattr(frame, "rotation", 0)) % 360  # phones store how they were held
    return picture.rotate(turn, expand=True) if turn else picture
