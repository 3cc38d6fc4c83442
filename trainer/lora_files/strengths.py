"""Strengths as users write them: per block, over the sampling steps, as a sweep. Those in a prompt: prompt_tags.py."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import KilnError
from ..parsers import split_signs

_BLOCK_NUMBER = re.compile(r"blocks\.(\d{1,9})\.")
_RANGE = re.compile(r"^(\d{1,9})(?:\s*-\s*(\d{1,9}))?$")
MAX_SWEEP = 64  # strengths of one sweep


def parse_number(text: str, where: str) -> float:
    """A finite number; raises KilnError, naming `where` it stands."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise KilnError(f"{text.strip()!r} in {where} is not a number; write for example 0.8.")
    return number


@dataclass(frozen=True)
class BlockWeights:
    """Factors per layer: "0-9:0.5, 10-29:1, self_attn:0".

    Attributes:
        rules: selector (a block's number, a range of them, or a piece of a layer's name) and factor.
    """

    rules: tuple[tuple[str, float], ...]

    @staticmethod
    def parse(text: str) -> BlockWeights:
        """Read rules such as "0-9:0.5", separated by commas, semicolons or line breaks.

        Raises:
            KilnError: a rule is malformed.
        """
        rules = []
        for rule in split_signs(text):
            selector, colon, factor = rule.rpartition(":")
            if not colon or not selector.strip():
                raise KilnError(
                    f"{rule!r} in block_weights has no factor; write for example 0-9:0.5 or self_attn:0."
                )
            rules.append((selector.strip(), parse_number(factor, "block_weights")))
        return BlockWeights(tuple(rules))

    def of(self, layer: str) -> float:
        """The factor of one layer: the product of all rules that match it, 1 where none does."""
        factor = 1.0
        for selector, value in self.rules:
            if _matches(selector, layer):
                factor *= value
        return factor

    def check(self, layers: Iterable[str]) -> None:
        """Raise KilnError for a rule that matches no layer: it would silently do nothing."""
        names = list(layers)
        for selector, _ in self.rules:
            if not any(_matches(selector, layer) for layer in names):
                numbers = [int(m[1]) for layer in names if (m := _BLOCK_NUMBER.search(layer))]
                blocks = f"blocks 0-{max(numbers)} and " if numbers else ""
                raise KilnError(
                    f"{selector!r} in block_weights fits no layer of the LoRA; it has {blocks}layers such as "
                    f"{next(iter(names), 'none')}."
                )


def _matches(selector: str, layer: str) -> bool:
    """Whether a layer is in the selector's blocks, or its name holds the selector."""
    numbers = _RANGE.match(selector)
    if numbers is None:
        return selector in layer
    block = _BLOCK_NUMBER.search(layer)
    first = int(numbers[1])
    return block is not None and first <= int(block[1]) <= int(numbers[2] or first)


def parse_schedule(text: str) -> list[tuple[float, float]]:
    """ "0:0, 0.3:1, 0.8:0.5" -> [(0.0, 0.0), (0.3, 1.0), (0.8, 0.5)]: (start, factor), sorted by start.

    Args:
        text: points, separated by commas, semicolons or line breaks. Empty text is no schedule.

    Returns:
        start: share (0-1) of the sampling from which on the factor holds. Before the first point the factor is 1.

    Raises:
        KilnError: a point is malformed or lies outside 0-1.
    """
    points = []
    for point in split_signs(text):
        start, colon, factor = point.partition(":")
        if not colon:
            raise KilnError(f"{point!r} in schedule has no factor; write for example 0:0, 0.3:1.")
        share = parse_number(start, "schedule")
        if not 0 <= share <= 1:
            raise KilnError(
                f"{start.strip()} in schedule lies outside 0-1; give a share of the sampling, 0 is its start."
            )
        points.append((share, parse_number(factor, "schedule")))
    points.sort()
    return [(0.0, 1.0), *points] if points and points[0][0] > 0 else points


def parse_sweep(text: str) -> list[float]:
    """ "0, 0.5..0.9:0.1" -> [0, 0.5, 0.6, 0.7, 0.8, 0.9]: numbers, and ranges low..high:step, both ends included.

    Without a step it is 0.1.

    Raises:
        KilnError: it is malformed, empty or longer than MAX_SWEEP.
    """
    values: list[float] = []
    for piece in split_signs(text):
        if ".." not in piece:
            values.append(parse_number(piece, "strengths"))
            continue
        low_text, _, rest = piece.partition("..")
        high_text, colon, step_text = rest.partition(":")
        low, high = parse_number(low_text, "strengths"), parse_number(high_text, "strengths")
        step = parse_number(step_text, "strengths") if colon else 0.1
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
