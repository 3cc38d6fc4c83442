"""A tokenizer that takes text word for word: no weights in brackets, no embeddings by name.

Wrappers around the host's tokenizers pass options on differently (some set `disable_weights` themselves, some drop
it), so the innermost ones are exchanged, each for a copy whose class always sets it. `\\(` stays a bracket, as taggers
write it.
"""

from __future__ import annotations

import copy
from typing import Any

from comfy.sd1_clip import SD1Tokenizer, SDTokenizer, escape_important, token_weights

EXAMPLE = "a (red:1.5) circle"  # on which a tokenizer shows whether it reads weights


def literal(tokenizer: Any) -> Any:
    """A copy of a CLIP's tokenizer; one of a kind that is not the host's stays as it is."""
    changed = copy.copy(tokenizer)
    if isinstance(tokenizer, SDTokenizer):
        changed.embedding_directory = None
        changed.__class__ = _literal_class(type(tokenizer))
        return changed
    for name, inner in getattr(tokenizer, "__dict__", {}).items():
        if isinstance(inner, (SDTokenizer, SD1Tokenizer)):
            setattr(changed, name, literal(inner))
    return changed


def is_syntax(text: str) -> bool:
    """Whether a prompt's tokenizer takes any sign of a text for more than itself. Escaped brackets, and those without a
    partner, stand for themselves there too."""
    escaped = escape_important(text)
    return "embedding:" in text or token_weights(escaped, 1.0) not in ([], [(escaped, 1.0)])


class _Literal(SDTokenizer):
    """Stands between a tokenizer and the host's base class, so that its own changes of the text stay."""

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> Any:
        return super().tokenize_with_weights(text, return_word_ids, **{**options, "disable_weights": True})


_CLASSES: dict[Any, Any] = {}


def _literal_class(kind: Any) -> Any:
    if kind not in _CLASSES:
        _CLASSES[kind] = type("Literal", (_Literal,) if kind is SDTokenizer else (kind, _Literal), {})
    return _CLASSES[kind]
