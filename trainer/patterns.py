"""Regular expressions that users write, matched in bounded time.

A workflow that is shared holds expressions of somebody else, and one such as `(([a-z._0-9]+)+)+!` keeps Python's own
matcher, which holds the interpreter's lock meanwhile, busy for longer than anyone waits. The `regex` package stops at a
time limit and lets other threads run. Where it does not look at the time is bounded before: it writes `a{1000000000}`
out, and takes seconds for thousands of optional letters.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Generic, TypeVar

import regex  # type: ignore[import-untyped]

from .errors import KilnError, shortened

SECONDS = 1.0  # for the matches of one expression within a window
_WINDOW = 10.0  # seconds
_QUICK = 0.01  # seconds; a match that takes less does not count: honest expressions take microseconds
_LONGEST = 200_000  # characters: all layer names of the largest model
_LONGEST_NAME = 1000  # characters; layers have up to a hundred
_MOST_PARTS = 400  # groups, sets and repetitions of one expression
_MOST_TIMES, _MOST_COPIES = 100, 10_000  # of one {n}, and of all of them inside each other
MOST_PATTERNS = 5000  # that are looked through for each name
_PATIENCE = 20.0  # seconds of this thread's work for all of them, within _LONG_WINDOW
_LONG_WINDOW = 120.0
_ESCAPED, _COUNTS, _DIGITS = re.compile(r"\\.", re.DOTALL), re.compile(r"\{[^{}]*\}?"), re.compile(r"\d+")
_RECURSION = re.compile(r"\(\?(R|&|P>|[+-]?\d)")  # it would fill the memory

T = TypeVar("T")


class Pattern:
    """An expression; made by compile_pattern."""

    def __init__(self, text: str, setting: str) -> None:
        self._text, self._setting = text, setting
        self._left, self._window = SECONDS, time.monotonic()
        try:
            _check_size(text)
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
        if len(name) > _LONGEST_NAME:
            raise KilnError(
                f"{self._setting} cannot be matched with a name of {len(name)} characters "
                f"({shortened(repr(name), 60)}); no layer is called so."
            )
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


def _check_size(text: str) -> None:
    """Raise ValueError for an expression that no person writes."""
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters")
    bare = _ESCAPED.sub("", text)
    if _RECURSION.search(bare):
        raise ValueError("it holds an expression inside itself")
    parts = sum(bare.count(sign) for sign in "([?*+{")
    if parts > _MOST_PARTS:
        raise ValueError(f"it has {parts} groups, sets and repetitions, and at most {_MOST_PARTS} are taken")
    copies = 1
    for counts in _COUNTS.findall(bare):
        times = max((int(digits[:9]) for digits in _DIGITS.findall(counts)), default=1)
        copies *= max(times, 1)
        if times > _MOST_TIMES or copies > _MOST_COPIES:
            raise ValueError(f"{counts[:20]} repeats more often than {_MOST_TIMES} times")


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


class Patterns(Generic[T]):
    """Expressions with a value each; bounded in time all together, as a file may hold thousands."""

    def __init__(self, values: Iterable[tuple[str, T]], setting: str) -> None:
        """
        Args:
            values: expressions, of which each is found anywhere in a name, and what they stand for.
            setting: its name in messages.

        Raises:
            KilnError: one is malformed, or there are too many.
        """
        some = list(islice(values, MOST_PATTERNS + 1))
        if len(some) > MOST_PATTERNS:
            raise KilnError(f"{setting} holds more than {MOST_PATTERNS} expressions; write fewer.")
        self._values = [(compile_pattern(text, setting), value) for text, value in some]
        self._setting = setting
        self._left, self._window = _PATIENCE, time.monotonic()

    def first(self, name: str) -> T | None:
        """The value of the first that is found in a name; None where none is.

        Raises:
            KilnError: matching takes too long.
        """
        if time.monotonic() - self._window > _LONG_WINDOW:
            self._left, self._window = _PATIENCE, time.monotonic()
        started = time.thread_time()
        for pattern, value in self._values:
            if pattern.search(name):
                self._left -= time.thread_time() - started
                return value
            if time.thread_time() - started > self._left:
                raise KilnError(
                    f"{self._setting} takes too long to match: it holds {len(self._values)} expressions; write fewer, "
                    "or simpler ones."
                )
        self._left -= time.thread_time() - started
        return None
