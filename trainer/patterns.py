"""Regular expressions that users write, matched in bounded time.

A workflow that is shared holds expressions of somebody else, and one such as `(([a-z._0-9]+)+)+!` keeps Python's own
matcher, which holds the interpreter's lock meanwhile, busy for longer than anyone waits. The `regex` package stops at a
time limit and lets other threads run.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import regex  # type: ignore[import-untyped]

from .errors import KilnError, shortened

SECONDS = 1.0  # for the matches of one expression within a window
_WINDOW = 10.0  # seconds
_QUICK = 0.01  # seconds; a match that takes less does not count: honest expressions take microseconds
_LONGEST = 200_000  # characters: all layer names of the largest model


class Pattern:
    """An expression; made by compile_pattern."""

    def __init__(self, text: str, setting: str) -> None:
        self._text, self._setting = text, setting
        self._left, self._window = SECONDS, time.monotonic()
        try:
            if len(text) > _LONGEST:
                raise ValueError(f"{len(text)} characters")
            self._compiled = regex.compile(text)
        except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            why = str(error) or type(error).__name__
            raise KilnError(
                f"{setting} is not a valid regular expression ({shortened(why)}): {shortened(repr(text))}."
            ) from error

    def search(self, name: str) -> bool:
        """Whether it is found in the name.

        Raises:
            KilnError: matching takes too long.
        """
        return self._run(self._compiled.search, name)

    def fullmatch(self, name: str) -> bool:
        """Whether the whole name is it; raises as `search` does."""
        return self._run(self._compiled.fullmatch, name)

    def _run(self, match: Callable[..., object], name: str) -> bool:
        started = time.monotonic()
        if self._left > 0 and started - self._window > _WINDOW:
            self._left, self._window = SECONDS, started
        try:
            if self._left <= 0:  # never tried again
                raise TimeoutError
            found = match(name, timeout=self._left, concurrent=True)
        except (TimeoutError, RecursionError, MemoryError) as error:
            self._left = 0.0
            raise KilnError(
                f"{self._setting} takes too long to match ({shortened(repr(self._text))}); write it without "
                "repetitions inside repetitions."
            ) from error
        spent = time.monotonic() - started
        self._left -= spent if spent > _QUICK else 0
        return found is not None


@functools.lru_cache(maxsize=8192)
def compile_pattern(text: str, setting: str) -> Pattern:
    """A user's regular expression; surrounding spaces do not count.

    Args:
        text: the expression.
        setting: its name in messages.

    Raises:
        KilnError: it is malformed.
    """
    return Pattern(text.strip(), setting)
