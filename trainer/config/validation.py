"""Validation: when it measures, and what follows from what it finds."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the run is measured on held-out items, whose role is validation, and what follows from it."""

    every: int = setting(
        100,
        "Steps between measurements, 0 for none. Always the same noise at the same noise levels, so the curve is "
        "smooth.",
        minimum=0,
        maximum=1_000_000,
    )
    levels: int = setting(
        4,
        "Noise levels measured per item: the middles of as many equal shares of what training draws. One forward pass "
        "each.",
        minimum=1,
        maximum=32,
    )
    patience: int = setting(
        0,
        "Stop early when this many measurements in a row were no better than the best; 0 never stops early.",
        minimum=0,
        maximum=1000,
    )
    result: str = setting(
        "last",
        "Which weights the run hands on: those of the last step, or those of the best measurement.",
        options=("last", "best"),
    )

    def __post_init__(self) -> None:
        check_ranges(self)
