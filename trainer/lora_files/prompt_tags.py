"""LoRA tags in a prompt: <lora:name:0.8>, <lora:name:0.8:0.6> and lora_weight=0.8."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..errors import KilnError
from .strengths import parse_number

_TAG = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?(?::([^:<>]*))?>", re.IGNORECASE)
_LORA_WEIGHT = re.compile(r"\blora_weight\s*=\s*([-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)
_MALFORMED = re.compile(r"<lora:[^>]*>?|\blora_weight\s*=\s*\S*", re.IGNORECASE)


@dataclass(frozen=True)
class PromptLora:
    """One LoRA tag of a prompt; a strength that is not written is None."""

    name: str
    strength: float | None
    strength_clip: float | None


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt split into text and LoRA tags.

    Attributes:
        text: the prompt without tags.
        loras: one for each tag, in order.
        weight: the value of the last lora_weight=, None without one.
    """

    text: str
    loras: tuple[PromptLora, ...]
    weight: float | None


def parse_prompt(prompt: str) -> ParsedPrompt:
    """Take <lora:name:0.8>, <lora:name:0.8:0.6> and lora_weight=0.8 out of a prompt.

    Raises:
        KilnError: a strength is not a number, or a tag is malformed.
    """
    loras = []
    for name, strength, clip in _TAG.findall(prompt):
        model = parse_number(strength, f"<lora:{name}>") if strength.strip() else None
        loras.append(
            PromptLora(name.strip(), model, parse_number(clip, f"<lora:{name}>") if clip.strip() else model)
        )
    weights = [parse_number(w, "lora_weight") for w in _LORA_WEIGHT.findall(prompt)]
    text = _LORA_WEIGHT.sub("", _TAG.sub("", prompt))
    malformed = _MALFORMED.search(text)
    if malformed:  # left in the text, the model would draw it as words
        raise KilnError(
            f"{malformed[0].strip()!r} in the prompt cannot be read; write <lora:name:0.8>, <lora:name:0.8:0.6> or "
            "lora_weight=0.8."
        )
    text = re.sub(r"\(\s*\)(?::[0-9.]+)?", "", re.sub(r"\(\s*:\s*[0-9.]+\s*\)", "", text)) if loras else text
    text = _without_empty_clauses(re.sub(r"[ \t]+", " ", text))
    return ParsedPrompt(text, tuple(loras), weights[-1] if weights else None)


def _without_empty_clauses(text: str) -> str:
    """ "a , , b," -> "a, b". Not by expressions: those for it take the square of the length."""
    *before, last = text.split(",")
    clauses = [clause.rstrip() for clause in before]
    kept = [clause for clause in clauses[1:] if clause]
    return ",".join([*clauses[:1], *kept, last]).strip(" ,\t")


def find_lora_file(wanted: str, names: Sequence[str]) -> str:
    """The file that a tag names: by its whole name, or without folders, or without ending.

    Args:
        wanted: the name in the tag.
        names: of all LoRA files, relative to the loras folders.

    Raises:
        KilnError: there is none, or there are several; the message lists the nearest.
    """
    key = str(_normalised(wanted)) if wanted else ""
    paths = {n: _normalised(n) for n in names}
    exact = [n for n, path in paths.items() if key in (str(path), str(path.with_suffix("")))]
    matches = exact or [n for n, path in paths.items() if key in (path.name, path.stem)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise KilnError(
            f"The prompt's LoRA {wanted!r} can be {', '.join(sorted(matches))}; write its folder too."
        )
    by_stem = {path.stem: n for n, path in paths.items()}
    near = [by_stem[s] for s in difflib.get_close_matches(PurePosixPath(key).stem, by_stem, n=5, cutoff=0.3)]
    raise KilnError(
        f"There is no LoRA file {wanted!r} in the host's loras folders; "
        + (f"nearest: {', '.join(near)}." if near else "there is none with a name like it.")
    )


def _normalised(name: str) -> PurePosixPath:
    """A file's name in the form that all systems share: / between folders, lower case, accents composed (NFC)."""
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")).lower())
