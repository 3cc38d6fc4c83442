"""How far an encoding is, in a sentence: which item, how much is written, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class EncodeProgress:
    """The state after a file, or before a batch."""

    done: int  # files, those that were there before included
    total: int
    kind: str = ""  # "image" or "caption": what is encoded now
    name: str = ""  # of the file, or the caption's beginning
    bytes_written: int = 0
    seconds_left: float | None = None  # for all of this kind; None while nothing is known

    def sentence(self) -> str:
        """For the node's text; empty before anything is encoded."""
        if not self.kind:
            return ""
        so_far = f"{self.done} of {self.total} files, {self.bytes_written / 1e6:.1f} MB written"
        if self.seconds_left is not None:
            so_far = f"{so_far}, about {duration(self.seconds_left)} left for this part"
        if self.kind == "image":
            return f"encoding the image {self.name}: {so_far}"
        return f"encoding the caption {self.name}: {so_far}"


OnProgress = Callable[[EncodeProgress], None]


class Tracker:
    """Counts files and measures the pace of one kind at a time. Its first batch loads the model and tells nothing."""

    def __init__(self, done: int, total: int, on_progress: OnProgress) -> None:
        self._done, self._total, self._tell = done, total, on_progress
        self._bytes, self._kind, self._name = 0, "", ""
        self._left = self._measured = 0.0
        self._since: float | None = None
        self._tell(EncodeProgress(done, total))

    def begin(self, kind: str, work: float) -> None:
        """All of one kind come now: `work` in units of your choice."""
        self._kind, self._left, self._measured, self._since = kind, work, 0.0, None

    def now(self, name: str) -> None:
        """This one is being worked on."""
        self._name = name
        self._say()

    def wrote(self, size: int, work: float, name: str) -> None:
        """A file of `size` bytes is on disk, which was so much of the work."""
        self._done += 1
        self._bytes += size
        self._left -= work
        self._name = name
        if self._since is not None:
            self._measured += work
        self._say()

    def batch_done(self) -> None:
        """From the first one on the pace is measured."""
        if self._since is None:
            self._since = time.monotonic()

    def _say(self) -> None:
        seconds = None
        if self._since is not None and self._measured > 0:
            seconds = (time.monotonic() - self._since) / self._measured * max(0.0, self._left)
        self._tell(EncodeProgress(self._done, self._total, self._kind, self._name, self._bytes, seconds))


def duration(seconds: float) -> str:
    """As a person is told it, rounded."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
