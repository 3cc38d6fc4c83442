"""A word found as a word of its own, in scripts with spaces between words and in those without."""

from __future__ import annotations

import re

# Thai, Lao, Burmese, Khmer, Chinese, Japanese, and Korean, where particles follow a word without a space
_NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W{_NO_SPACES}]"
"""A letter or digit that would belong to the same word as its neighbour."""


def word_pattern(word: str) -> str:
    """An expression for the word, not for a part of a longer one: zorb is not in zorbs; a Chinese word is found
    wherever it stands. Spaces inside it may be any.

    Args:
        word: without spaces around it, not empty.
    """
    inner = r"\s+".join(re.escape(part) for part in word.split())
    before = rf"(?<!{_LETTER})" if _is_letter(word[0]) else ""
    behind = rf"(?!{_LETTER})" if _is_letter(word[-1]) else ""
    return before + inner + behind


def gap_pattern(left: str, right: str) -> str:
    """What stands between two words of a caption: spaces, or nothing where their letters need none."""
    return r"\s+" if _is_letter(left[-1]) and _is_letter(right[0]) else r"\s*"


def _is_letter(character: str) -> bool:
    return re.fullmatch(_LETTER, character) is not None
