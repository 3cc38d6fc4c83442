"""What happens when a step goes wrong: non-finite numbers, spikes, a full device.

A bad step is skipped and counted; too many in a row roll the run back to its last checkpoint at half the learning rate
(or end it). When the device's memory runs out, the step is tried again in a way that needs less. All of it is in
`GuardState`, which checkpoints hold: a resumed run goes on at the same rate and in the same parts.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..config import GuardConfig
from ..errors import KilnError
from ..memory.out_of_memory import free_memory, is_out_of_memory

T = TypeVar("T")

SPIKE_WINDOW = 50  # steps whose median a loss is held against
SPIKE_AFTER = 10  # steps before which nothing counts as a spike


@dataclass
class GuardState:
    """What the guards have done so far in this run."""

    bad_in_a_row: int = 0
    skipped: int = 0
    rollbacks: int = 0
    rate: float = 1.0  # factor on the learning rate, halved by every roll-back
    clipped_spikes: int = 0
    activation_checkpointing: bool = False
    parts: int = 1  # into which each batch is cut
    loss_scale: float = 2.0**16  # of models that compute in fp16, see loss_scale.py
    steps_since_overflow: int = 0  # of a scaled gradient
    overflows: int = 0  # steps that were computed again at half the scale

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> GuardState:
        """The inverse of dataclasses.asdict."""
        return cls(**values)  # type: ignore[arg-type]

    def note_roll_back(self) -> None:
        """Half the rate from now on, and the bad steps are forgotten."""
        self.bad_in_a_row = 0
        self.rollbacks += 1
        self.rate /= 2


def note_bad_step(state: GuardState, config: GuardConfig) -> bool:
    """Count a skipped step; True when it is one too many."""
    state.skipped += 1
    state.bad_in_a_row += 1
    return state.bad_in_a_row > config.max_bad_steps


def check_may_roll_back(state: GuardState, config: GuardConfig, step: int, rate: float, what: str) -> None:
    """Raise the KilnError that ends the run, when rolling back is not wanted or has not helped."""
    if config.on_divergence == "roll_back" and state.rollbacks < config.max_rollbacks:
        return
    tried = f" after {state.rollbacks} roll-backs, each to half the learning rate" if state.rollbacks else ""
    raise KilnError(
        f"{what} at step {step}, the last of {state.bad_in_a_row} such steps in a row{tried}; lower the learning rate "
        f"(now {rate:g}) and set resume to latest, or start again."
    )


def optimizer_step(step: Callable[[], None], parameters: Sequence[torch.Tensor]) -> None:
    """An optimizer step, whose first one allocates the optimizer's state; again after freeing memory when that fails.

    Args:
        step: raises when the memory runs out.
        parameters: that it changes; when some have changed already, it cannot be done again.

    Raises:
        KilnError: the device's memory does not suffice.
    """
    versions = [p._version for p in parameters]
    for attempt in (1, 2):
        try:
            return step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if attempt == 2 or versions != [p._version for p in parameters]:
                raise KilnError(
                    f"The device's memory does not suffice for the optimizer ({_first_line(error)}); choose adafactor "
                    "or adamw_8bit, or lower the rank."
                ) from error
        free_memory()


def prefetch(work: Callable[[], None]) -> None:
    """Prepare the next step's batch; where the memory does not suffice for that now, the step itself will do it."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def spike_limit(losses: Sequence[float], config: GuardConfig) -> float:
    """The loss above which a step counts as a spike; infinite when the guard is off or too little is known."""
    recent = [x for x in losses[-SPIKE_WINDOW:] if math.isfinite(x)]
    if not config.spike_factor or len(recent) < SPIKE_AFTER:
        return math.inf
    return config.spike_factor * statistics.median(recent)


def with_less_memory(
    work: Callable[[], T],
    state: GuardState,
    config: GuardConfig,
    *,
    largest_batch: int,
    clean_up: Callable[[], None],
    warn: Callable[[str], None],
) -> T:
    """Do `work`; when the device's memory runs out, change the state to need less and do it again.

    Args:
        work: one step's gradients; reads activation_checkpointing and parts from the state.
        largest_batch: items in the step's largest batch: parts cannot be smaller than one.
        clean_up: forget the half-made gradients.
        warn: tells the user what was changed.

    Raises:
        KilnError: nothing is left to try.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
            message = _first_line(error)
        clean_up()
        free_memory()
        before = dataclasses.replace(state)
        if config.retry_out_of_memory and not state.activation_checkpointing:
            state.activation_checkpointing = True
            warn(f"The device's memory is full ({message}); going on with activation checkpointing.")
        elif config.retry_out_of_memory and state.parts < largest_batch:
            state.parts = min(2 * state.parts, largest_batch)
            warn(
                f"The device's memory is full ({message}); going on with each batch in {state.parts} parts, the "
                "effective batch is the same."
            )
        if before == state:
            raise KilnError(
                f"The device's memory does not suffice for one item ({message}); lower the resolution or the rank, or "
                "close other programs that use the device."
            )
