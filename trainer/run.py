"""A run as others see it after it has ended: what nodes pass on as KILN_RUN."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checkpoint
from .adapter.files import LoraWeights
from .config import AdapterConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished or stopped run."""

    run_id: str  # name of its folder
    folder: Path
    config: TrainConfig
    lora: LoraWeights
    losses: list[float]  # one per step
    seconds: float
    stopped: bool
    trained_parameters: int
    model_parameters: int

    def summary(self) -> dict[str, Any]:
        """The figures a person asks for first, as plain values."""
        return {
            "run": self.run_id,
            "steps": len(self.losses),
            "seconds": round(self.seconds, 1),
            "first_loss": round(_mean(self.losses[:50]), 4),
            "last_loss": round(_mean(self.losses[-50:]), 4),
            "parameters_percent": round(100 * self.trained_parameters / max(self.model_parameters, 1), 2),
            "megabytes": round(sum(t.nbytes for t in self.lora.values()) / 1e6, 2),
        }

    def sentence(self) -> str:
        """The same for the node's text."""
        s = self.summary()
        verb = "stopped after" if self.stopped else "done:"
        return (
            f"{verb} {s['steps']} steps in {s['seconds']:.0f} s, loss {s['first_loss']:.3f} -> {s['last_loss']:.3f}; "
            f"{s['parameters_percent']} % of the model's parameters, {s['megabytes']} MB"
        )


def find_latest(runs: Path, dataset: str, base_model: str, adapter: AdapterConfig) -> Path | None:
    """The newest checkpoint of any run of this dataset on this model with this shape of adapter, or None.

    Args:
        runs: folder that holds the runs' folders, whose names sort by time.
        dataset, base_model: fingerprints.
        adapter: its rank, alpha and target modules must be the run's.
    """
    for folder in sorted(runs.glob("*"), reverse=True):
        for path in reversed(checkpoint.find_checkpoints(folder)):
            state = checkpoint.read_state(path)
            shape = AdapterConfig(**state.config["adapter"])
            if (state.dataset, state.base_model, *_shape(shape)) == (dataset, base_model, *_shape(adapter)):
                return path
    return None


def _shape(adapter: AdapterConfig) -> tuple[int, float, str]:
    return adapter.rank, adapter.alpha, adapter.target_modules


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)
