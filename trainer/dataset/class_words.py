"""Captions with the trigger word replaced by what it is one of, for differential output preservation.

    "zorb, a red zorb on a table"  with the classes "circle | square"  ->  "circle, a red circle on a table", ...

The name and the idea are ai-toolkit's (`diff_output_preservation`, Ostris 2024); its loss is in trainer/loop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from ..errors import KilnError, shortened
from .whole_words import gap_pattern, word_pattern

_BARS = re.compile("[|\uff5c]")  # the full-width bar too, as Chinese keyboards type it


@dataclass(frozen=True)
class ClassWords:
    """A trigger word and what it is one of."""

    trigger: str
    words: tuple[str, ...]  # several are drawn in turn, see ItemStore

    def captions(self, caption: str) -> list[str]:
        """The caption with each class in the trigger word's place; none where it lacks the trigger word.

        A class that stands beside the trigger word goes with it: "ohwx woman" and "woman ohwx" with the class "woman"
        become "woman", not "woman woman".
        """
        parts = self._place.split(caption)
        return [word.join(parts) for word in self.words] if len(parts) > 1 else []

    @cached_property
    def _place(self) -> re.Pattern[str]:
        """The trigger word and a class before or behind it."""
        words = sorted(self.words, key=len, reverse=True)  # "old woman" before "woman"
        before = "|".join(word_pattern(word) + gap_pattern(word, self.trigger) for word in words)
        behind = "|".join(gap_pattern(self.trigger, word) + word_pattern(word) for word in words)
        return re.compile(f"(?:{before})?{word_pattern(self.trigger)}(?:{behind})?", re.IGNORECASE)


def read_class_words(text: str, trigger: str) -> ClassWords | None:
    """ "circle | square" -> ClassWords; None where the text is empty.

    Raises:
        KilnError: there is no trigger word, or a class is the trigger word itself.
    """
    words = tuple(dict.fromkeys(word for part in _BARS.split(text) if (word := part.strip())))
    trigger = trigger.strip()
    if not words:
        return None
    if not trigger:
        raise KilnError(
            f"class_word is {shortened(text.strip())!r} and trigger_word is empty; write the word that stands for what "
            "is learned into trigger_word, or empty class_word."
        )
    of_its_own = re.compile(word_pattern(trigger), re.IGNORECASE)
    same = next((w for w in words if of_its_own.search(w)), None)
    if same is not None:
        raise KilnError(
            f"class_word is {shortened(same)!r} and holds the trigger word itself; write what {shortened(trigger)!r} "
            "is one of, such as woman, dog or style."
        )
    return ClassWords(trigger, words)
