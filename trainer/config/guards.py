"""Steps that go wrong: not finite, spikes, out of memory."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when a step goes wrong."""

    max_bad_steps: int = setting(
        3,
        "Steps in a row whose loss or gradient is not finite that are skipped; one more is too many.",
        minimum=0,
        maximum=1000,
    )
    on_divergence: str = setting(
        "roll_back",
        "After too many bad steps: roll_back to the last checkpoint and halve the learning rate, or stop.",
        options=("roll_back", "stop"),
    )
    max_rollbacks: int = setting(
        3, "Roll-backs after which the run stops all the same.", minimum=1, maximum=100
    )
    spike_factor: float = setting(
        0.0,
        "A step whose loss is more than this many times the recent median pulls no harder than one at that limit; 5 is "
        "usual, 0 switches it off.",
        minimum=0.0,
        maximum=1000.0,
        step=0.5,
    )
    retry_out_of_memory: bool = setting(
        True,
        "When the device's memory runs out, try the step again with activation checkpointing, then in smaller parts "
        "with the same effective batch.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
