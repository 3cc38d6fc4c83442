"""Noise levels of the two experts of one model (Wan 2.2 14B): each is for a share of them, and the shares meet."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import KilnError
from .objective import ObjectiveConfig

TOLERANCE = 1e-6


class NoiseRange(NamedTuple):
    """What of the noise is trained on, as shares 0-1 of the model's whole range."""

    low: float
    high: float

    @property
    def is_whole(self) -> bool:
        return self.low <= TOLERANCE and self.high >= 1 - TOLERANCE


def misfit(own: NoiseRange, other: NoiseRange) -> str:
    """A sentence where the ranges of two experts overlap or leave a gap; "" where they meet, or are both whole."""
    if own.is_whole and other.is_whole:
        return ""
    low, high = sorted((own, other))
    if abs(low.high - high.low) <= TOLERANCE:
        return ""
    if low.high > high.low:
        return (
            f"The noise levels of the two experts overlap: this run trains {own.low:g} to {own.high:g} and the other "
            f"{other.low:g} to {other.high:g}; choose a preset on both Objective Settings."
        )
    return (
        f"The noise levels of the two experts leave a gap: this run trains {own.low:g} to {own.high:g} and the other "
        f"{other.low:g} to {other.high:g}; choose a preset on both Objective Settings."
    )


def boundary_of(config: ObjectiveConfig) -> tuple[float, bool]:
    """Where the trained expert gives over to the other, or takes over from it, and whether it is the one for high
    noise.

    Raises:
        KilnError: the range does not end at one place.
    """
    own = NoiseRange(config.min_timestep, config.max_timestep)
    from_start, to_end = own.low <= TOLERANCE, own.high >= 1 - TOLERANCE
    if from_start == to_end:
        raise KilnError(
            f"other_expert is connected to Sample Settings, and the run trains the noise levels {own.low:g} to "
            f"{own.high:g}, which are no expert's; choose a preset on Objective Settings."
        )
    return (own.low, True) if to_end else (own.high, False)
