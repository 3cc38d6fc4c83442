"""The one exception that users are meant to read."""

from __future__ import annotations


def shortened(text: str, most: int = 200) -> str:
    """Text of a user or a file, for a message: at most that many characters."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


MOST = 1000
"""Characters of a message: what is refused may be a book, and is quoted with a part of it."""


class KilnError(ValueError):
    """Something the user gave us does not work: the message names the thing, what was found and the cure.

    Of a message longer than MOST the middle is left out; the cure stands at its end.
    """

    # The host shows the class's full name to users; its own would hold a path of their machine.
    __module__ = "lora_kiln"

    def __init__(self, sentence: str = "") -> None:
        if len(sentence) > MOST:
            sentence = f"{sentence[: MOST * 6 // 10 - 5]} ... {sentence[-MOST * 4 // 10 :]}"
        super().__init__(sentence)


class CannotResume(KilnError):
    """A run cannot go on as it was.

    Attributes:
        offer: what `resume` may be set to instead, so that a new run begins from its checkpoint; empty for nothing.
    """

    __module__ = "lora_kiln"

    def __init__(self, sentence: str, offer: str = "") -> None:
        super().__init__(sentence)
        self.offer = offer
