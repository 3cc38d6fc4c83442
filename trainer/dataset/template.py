"""Captions from a template.

    {subject} {action}, {art_style} style, {lighting}, detailed {texture}

A template is a list of clauses between commas. A placeholder is `{name}` or `[name]`; every image brings `caption`,
`name` (of its file), `folder` and the fields of its sidecars, and `values` gives defaults for the rest, one
"name: value" a line, alternatives split by "|" and drawn per image from the seed. A clause with an empty placeholder is
dropped whole, so no comma is left dangling.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from typing import Literal

import numpy as np

from ..errors import KilnError
from ..parsers import lines_of
from ..rng import derive_seed
from .caption_variants import COMMAS
from .items import Dataset
from .pixels import shown
from .text_files import MOST_CAPTION
from .whole_words import word_pattern

MOST_TEXT = 100_000  # characters of the template, and of the values

_PLACEHOLDER = re.compile(r"\{([^{}\[\]]*)\}|\[([^{}\[\]]*)\]")
# Full-width signs, as Chinese keyboards type them, count like the plain ones.
_WIDE_COLON, _BARS = "\uff1a", "[|\uff5c]"
Missing = Literal["drop clause", "error", "keep"]


def parse_values(text: str) -> dict[str, list[str]]:
    """ "name: a | b" lines -> {"name": ["a", "b"]}. Empty lines and lines starting with # are left out.

    Raises:
        KilnError: a line has no colon or no name.
    """
    values: dict[str, list[str]] = {}
    for number, raw in enumerate(lines_of(text), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, value = line.replace(_WIDE_COLON, ":", 1).partition(":")
        if not colon or not name.strip():
            raise KilnError(f"Line {number} of values is {line!r}; write it as name: value.")
        values[name.strip()] = [v.strip() for v in re.split(_BARS, value)]
    return values


def fill(template: str, fields: Mapping[str, str], missing: Missing = "drop clause") -> str:
    """One caption.

    Args:
        template: clauses between commas, with {name} or [name] placeholders.
        fields: every name that may be used; an empty value counts as missing.
        missing: what to do about an empty one: drop its clause, raise, or keep the placeholder as text.

    Raises:
        KilnError: a placeholder's name is not in fields, a brace is left open, or missing is "error" and one is.
    """
    # Clauses are cut before values go in: a comma inside a value is not a clause border.
    clauses = (_fill_clause(c, fields, missing) for c in COMMAS.split(template))
    return ", ".join(c for c in clauses if c)


def caption_dataset(
    dataset: Dataset, template: str, values: str, trigger_word: str, missing: Missing, seed: int
) -> list[str]:
    """The finished caption of every item; an empty template keeps the item's own. The trigger word leads it.

    What a sidecar says of an image wins over `values`.

    Raises:
        KilnError: see fill and parse_values; or a text holds half of a character.
    """
    for name, text in (("template", template), ("values", values), ("trigger_word", trigger_word)):
        _check_text(name, text)
        if len(text) > MOST_TEXT:
            raise KilnError(
                f"{name} has {len(text)} characters, and at most {MOST_TEXT} are taken; shorten it."
            )
    alternatives = parse_values(values)
    template = template.strip() or "{caption}"
    known = {name for item in dataset.items for name, _ in item.fields}  # some images may lack some fields
    captions = []
    for item in dataset.items:
        # By the file's name, so that an image added to the folder does not change the others' captions
        draw = np.random.default_rng(derive_seed(seed, "caption", zlib.crc32(os.fsencode(item.path.name))))
        fields = {
            "caption": item.caption,
            "name": plain_text(item.path.stem),
            "folder": plain_text(item.folder),
        }
        fields |= {name: options[draw.integers(len(options))] for name, options in alternatives.items()}
        fields |= {name: value for name, value in item.fields if value or name not in fields}
        fields["trigger"] = trigger_word.strip()
        caption = fill(template, {**dict.fromkeys(known, ""), **fields}, missing)
        caption = lead_with(fields["trigger"], caption)
        if len(caption) > MOST_CAPTION:
            raise KilnError(
                f"The template makes a caption of {len(caption)} characters for {shown(item.path)}, and at most "
                f"{MOST_CAPTION} are taken; shorten it."
            )
        captions.append(caption)
    return captions


def _check_text(name: str, text: str) -> None:
    """JSON lets halves of a character through, which no text encoder takes and no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise KilnError(
            f"{name} holds half of a character at place {error.start + 1}; type that character again."
        ) from error


def lead_with(word: str, caption: str) -> str:
    """The caption with the trigger word in front, unless it stands in it as a word of its own."""
    if not word or re.search(word_pattern(word), caption, re.IGNORECASE):
        return caption
    return f"{word}, {caption}" if caption else word


def plain_text(name: str) -> str:
    """A file name as text: bytes that are none become question marks."""
    return name.encode("utf-8", "replace").decode()


def _fill_clause(clause: str, fields: Mapping[str, str], missing: Missing) -> str:
    lost = False

    def value(match: re.Match[str]) -> str:
        nonlocal lost
        name = (match[1] if match[1] is not None else match[2]).strip()
        if name not in fields:
            known = ", ".join(sorted(fields))
            raise KilnError(f"The template uses {match[0]}, but there is no such field; known are {known}.")
        if not fields[name]:
            if missing == "error":
                raise KilnError(
                    f"The template needs {match[0]}, which is empty for an image; fill it or drop the clause."
                )
            lost = True
            return match[0]
        return fields[name]

    filled = _PLACEHOLDER.sub(value, clause)
    if re.search(r"[{}]", _PLACEHOLDER.sub("", clause)):
        raise KilnError(f"The template has a brace without its partner in {clause.strip()!r}.")
    if lost and missing == "drop clause":
        return ""
    return re.sub(r"\s+", " ", filled).strip()
