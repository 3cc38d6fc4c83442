"""The small languages in which strengths are written: per block, over the sampling steps, as a sweep, in a prompt."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..errors import KilnError

_BLOCK_NUMBER = re.compile(r"blocks\.(\d+)\.")
_RANGE = re.compile(r"^(\d+)(?:\s*-\s*(\d+))?$")
_TAG = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?(?::([^:<>]*))?>", re.IGNORECASE)
_GUIDE = re.compile(r"\blora_weight\s*=\s*([-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)
_LEFT_OVER = re.compile(r"<lora:[^>]*>?|\blora_weight\s*=\s*\S*", re.IGNORECASE)
MAX_SWEEP = 64


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise KilnError(f"{text.strip()!r} in {where} is not a number; write for example 0.8.")
    return number


@dataclass(frozen=True)
class BlockWeights:
    """Factors per layer: "0-9:0.5, 10-29:1, self_attn:0"."""

    rules: tuple[tuple[str, float], ...]

    @staticmethod
    def parse(text: str) -> BlockWeights:
        """Rules part by commas or lines, each a block, a range of blocks or a piece of a layer's name, and a factor.

        Raises:
            KilnError: a rule is malformed.
        """
        rules = []
        for rule in filter(None, (r.strip() for r in re.split(r"[,;\n]", text))):
            selector, colon, factor = rule.rpartition(":")
            if not colon or not selector.strip():
                raise KilnError(
                    f"{rule!r} in block_weights has no factor; write for example 0-9:0.5 or self_attn:0."
                )
            rules.append((selector.strip(), _number(factor, "block_weights")))
        return BlockWeights(tuple(rules))

    def of(self, layer: str) -> float:
        """The factor of one layer: the product of all rules that fit it, 1 where none does."""
        factor = 1.0
        for selector, value in self.rules:
            if _fits(selector, layer):
                factor *= value
        return factor

    def check(self, layers: Iterable[str]) -> None:
        """Raise KilnError for a rule that fits no layer: it would silently do nothing."""
        found = list(layers)
        for selector, _ in self.rules:
            if not any(_fits(selector, layer) for layer in found):
                numbers = [int(m[1]) for layer in found if (m := _BLOCK_NUMBER.search(layer))]
                blocks = f"blocks 0-{max(numbers)} and " if numbers else ""
                raise KilnError(
                    f"{selector!r} in block_weights fits no layer of the LoRA; it has {blocks}layers such as "
                    f"{next(iter(found), 'none')}."
                )


def _fits(selector: str, layer: str) -> bool:
    numbers = _RANGE.match(selector)
    if numbers is None:
        return selector in layer
    block = _BLOCK_NUMBER.search(layer)
    first = int(numbers[1])
    return block is not None and first <= int(block[1]) <= int(numbers[2] or first)


def parse_schedule(text: str) -> list[tuple[float, float]]:
    """ "0:0, 0.3:1, 0.8:0.5" -> [(0.0, 0.0), (0.3, 1.0), (0.8, 0.5)]: from that share of the sampling on, that factor.

    Empty text is no schedule. A schedule that starts late has factor 1 before.

    Raises:
        KilnError: a point is malformed or lies outside 0-1.
    """
    points = []
    for point in filter(None, (p.strip() for p in re.split(r"[,;\n]", text))):
        start, colon, factor = point.partition(":")
        if not colon:
            raise KilnError(f"{point!r} in schedule has no factor; write for example 0:0, 0.3:1.")
        share = _number(start, "schedule")
        if not 0 <= share <= 1:
            raise KilnError(
                f"{start.strip()} in schedule lies outside 0-1; give a share of the sampling, 0 is its start."
            )
        points.append((share, _number(factor, "schedule")))
    points.sort()
    return [(0.0, 1.0), *points] if points and points[0][0] > 0 else points


def parse_sweep(text: str) -> list[float]:
    """ "0, 0.5..0.9:0.1" -> [0, 0.5, 0.6, 0.7, 0.8, 0.9]: numbers, and ranges with a step, both ends included.

    Raises:
        KilnError: it is malformed, empty or longer than MAX_SWEEP.
    """
    values: list[float] = []
    for piece in filter(None, (p.strip() for p in re.split(r"[,;\n]", text))):
        if ".." not in piece:
            values.append(_number(piece, "strengths"))
            continue
        span, colon, step_text = piece.rpartition(":")
        low, high = (_number(p, "strengths") for p in (span if colon else piece).split("..", 1))
        step = _number(step_text, "strengths") if colon else 0.1
        if step <= 0 or high < low:
            raise KilnError(
                f"{piece!r} in strengths goes nowhere; write low..high:step, for example 0.5..0.9:0.1."
            )
        steps = (high - low) / step + 1e-6  # infinite for a step that is next to nothing
        if steps >= MAX_SWEEP:
            raise KilnError(
                f"{piece!r} in strengths makes {steps // 1 + 1:.0f} values; {MAX_SWEEP} is the most, take a larger "
                "step."
            )
        count = int(steps) + 1
        values += [round(low + i * step, 6) for i in range(count)]
    if not 0 < len(values) <= MAX_SWEEP:
        raise KilnError(
            f"strengths gives {len(values)} values; 1 to {MAX_SWEEP} are possible, for example 0, 0.5..0.9:0.1."
        )
    return values


@dataclass(frozen=True)
class PromptLora:
    """One LoRA asked for in a prompt; a strength that is not written is None."""

    name: str
    strength: float | None
    strength_clip: float | None


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its LoRA tags, and what they asked for."""

    text: str
    loras: tuple[PromptLora, ...]
    weight: float | None  # of the guide's lora_weight=0.8


def parse_prompt(prompt: str) -> ParsedPrompt:
    """Take <lora:name:0.8>, <lora:name:0.8:0.6> and lora_weight=0.8 out of a prompt.

    Raises:
        KilnError: a strength is not a number, or a request is not written as they are.
    """
    found = []
    for name, strength, clip in _TAG.findall(prompt):
        model = _number(strength, f"<lora:{name}>") if strength.strip() else None
        found.append(
            PromptLora(name.strip(), model, _number(clip, f"<lora:{name}>") if clip.strip() else model)
        )
    weights = [_number(w, "lora_weight") for w in _GUIDE.findall(prompt)]
    text = _GUIDE.sub("", _TAG.sub("", prompt))
    unread = _LEFT_OVER.search(text)
    if unread:  # it would be drawn as words
        raise KilnError(
            f"{unread[0].strip()!r} in the prompt cannot be read; write <lora:name:0.8>, <lora:name:0.8:0.6> or "
            "lora_weight=0.8."
        )
    text = re.sub(r"\(\s*\)(?::[0-9.]+)?", "", re.sub(r"\(\s*:\s*[0-9.]+\s*\)", "", text)) if found else text
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r"(?:\s*,){2,}", ",", re.sub(r"\s+,", ",", text)).strip(" ,\t")
    return ParsedPrompt(text, tuple(found), weights[-1] if weights else None)


def find_name(wanted: str, names: Sequence[str]) -> str:
    """The file that a prompt means: its whole name, or the name without folders or without ending.

    Raises:
        KilnError: there is none, or there are several; the message lists the nearest.
    """
    key = str(_plain(wanted)) if wanted else ""
    whole = {n: _plain(n) for n in names}
    exact = [n for n, path in whole.items() if key in (str(path), str(path.with_suffix("")))]
    fits = exact or [n for n, path in whole.items() if key in (path.name, path.stem)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise KilnError(
            f"The prompt's LoRA {wanted!r} can be {', '.join(sorted(fits))}; write its folder too."
        )
    by_stem = {path.stem: n for n, path in whole.items()}
    near = [by_stem[s] for s in difflib.get_close_matches(PurePosixPath(key).stem, by_stem, n=5, cutoff=0.3)]
    raise KilnError(
        f"There is no LoRA file {wanted!r} in the host's loras folders; "
        + (f"nearest: {', '.join(near)}." if near else "there is none with a name like it.")
    )


def _plain(name: str) -> PurePosixPath:
    """A file's name whatever the system that wrote it: / between folders, small letters, accents as one letter."""
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")).lower())
