"""Where a run stands beside its weights, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..config import TrainConfig
from ..events import ValidationPoint
from ..runs.checkpoint import RunState
from ..runs.item_losses import ItemLosses
from .guards import GuardState


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves: also when it was stopped early."""

    adapter: dict[
        str, Tensor
    ]  # LoraAdapter.state_dict(), of the last step or the best measurement, as configured
    config: TrainConfig
    losses: list[float]  # one per step; nan where the step was skipped
    step: int  # steps done
    seconds: float  # spent in this session of the run
    stopped: bool  # by the user, before the last step
    validation: list[ValidationPoint] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    adapter_step: int = 0  # whose weights `adapter` holds
    stopped_early: bool = False  # by the validation loss


@dataclass(kw_only=True)
class Progress:
    """Where the run stands, beside its weights."""

    losses: list[float] = field(default_factory=list)
    points: list[ValidationPoint] = field(default_factory=list)
    guard: GuardState = field(default_factory=GuardState)
    advice: list[str] = field(default_factory=list)
    items: ItemLosses

    @property
    def step(self) -> int:
        return len(self.losses)

    def restore(self, state: RunState | None) -> None:
        """From a checkpoint's state; None is the start of the run."""
        self.losses = list(state.losses) if state else []
        self.points = [ValidationPoint(**p) for p in state.validation] if state else []
        self.guard = GuardState.from_dict(state.guard) if state else GuardState()
        self.items = ItemLosses.from_dict(state.item_losses if state else {}, len(self.items.draws))
