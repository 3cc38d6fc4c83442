"""Captions with the trigger word replaced by what it is one of, for differential output preservation.

    "zorb, a red zorb on a table"  with the classes "circle | square"  ->  "circle, a red circle on a table", ...

The name and the idea are ai-toolkit's (`diff_output_preservation`, Ostris 2024); its loss is in trainer/loop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import KilnError, shortened

_BARS = re.compile("[|\uff5c]")  # the full-width bar too, as Chinese keyboards type it


@dataclass(frozen=True)
class ClassWords:
    """A trigger word and what it is one of."""

    trigger: str
    words: tuple[str, ...]  # several are drawn in turn, see ItemStore

    def captions(self, caption: str) -> list[str]:
        """The caption with each class in the trigger word's place; none where it lacks the trigger word.

        "ohwx woman" with the class "woman" becomes "woman", not "woman woman".
        """
        found = []
        for word in self.words:
            doubled = rf"(?:\s+{re.escape(word)}(?![A-Za-z0-9_]))?"
            # Words are told apart by Latin letters only: in Chinese nothing stands between them
            trigger = rf"(?<![A-Za-z0-9_]){re.escape(self.trigger)}(?![A-Za-z0-9_])"
            parts = re.split(trigger + doubled, caption, flags=re.IGNORECASE)
            if len(parts) > 1:
                found.append(word.join(parts))
        return found


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
    same = next((w for w in words if trigger.casefold() in w.casefold().split()), None)
    if same is not None:
        raise KilnError(
            f"class_word is {shortened(same)!r} and holds the trigger word itself; write what {shortened(trigger)!r} "
            "is one of, such as woman, dog or style."
        )
    return ClassWords(trigger, words)
