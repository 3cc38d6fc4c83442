"""A run that has ended, as nodes pass it on (KILN_RUN): its figures, and its result on disk."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..errors import KilnError
from ..events import ValidationPoint
from ..lora_files.formulas import group_by_layer, is_zero
from ..lora_files.lora_weights import LoraWeights
from ..lora_files.text_encoder_names import is_text_encoder
from ..parsers import parse_json
from ..safefile import read_tensors, write_text


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished or stopped run."""

    run_id: str  # name of its folder
    folder: Path
    config: TrainConfig
    lora: LoraWeights
    losses: list[float]  # one per step; nan where it was skipped
    seconds: float
    stopped: bool
    trained_parameters: int
    model_parameters: int
    validation: list[ValidationPoint] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    adapter_step: int = 0  # whose weights `lora` holds

    def summary(self) -> dict[str, Any]:
        """The figures a person asks for first, as plain values."""
        best = min((p for p in self.validation if p.step), key=lambda p: p.loss, default=None)
        finite = [x for x in self.losses if math.isfinite(x)]
        window = min(50, max(1, len(finite) // 5))  # the two never overlap, however short the run
        measured = {} if best is None else {"best_step": best.step, "best_validation": round(best.loss, 4)}
        return {
            "run": self.run_id,
            "steps": len(self.losses),
            "seconds": round(self.seconds, 1),
            "first_loss": round(_mean(finite[:window]), 4),
            "last_loss": round(_mean(finite[-window:]), 4),
            "parameters_percent": round(100 * self.trained_parameters / max(self.model_parameters, 1), 2),
            "megabytes": round(sum(t.nbytes for t in self.lora.values()) / 1e6, 2),
            **measured,
        }

    def sentence(self) -> str:
        """The same for the node's text."""
        s = self.summary()
        if not self.losses:
            return "stopped before the first step: nothing was learned"
        layers = group_by_layer(self.lora).values()
        with_text = any(map(is_text_encoder, group_by_layer(self.lora)))
        nothing = ""
        if not self.config.optimizer.learning_rate and not with_text:
            nothing = "nothing was learned, for learning_rate is 0"
        elif layers and all(map(is_zero, layers)):
            nothing = "nothing was learned, the update of every layer is zero"
        figures = (
            f"{s['steps']} steps in {s['seconds']:.0f} s, loss {s['first_loss']:.3f} -> {s['last_loss']:.3f}; "
            f"{s['parameters_percent']} % of the model's parameters, {s['megabytes']} MB"
        )
        if "best_step" in s:
            figures += f"; validation best {s['best_validation']:.4f} at step {s['best_step']}"
        if nothing:
            return f"{'stopped' if self.stopped else 'done'}: {nothing}; {figures}"
        return f"stopped after {figures}" if self.stopped else f"done: {figures}"


RESULT, LORA = "result.json", "lora.safetensors"  # in a run's folder, when it has ended


def save_result(run: Run) -> None:
    """Leave beside the LoRA what load_run needs.

    Raises:
        KilnError: writing failed.
    """
    values = {
        "config": run.config.to_record(),
        "losses": [x if math.isfinite(x) else None for x in run.losses],
        "seconds": run.seconds,
        "stopped": run.stopped,
        "trained_parameters": run.trained_parameters,
        "model_parameters": run.model_parameters,
        "validation": [asdict(p) for p in run.validation],
        "advice": run.advice,
        "adapter_step": run.adapter_step,
    }
    write_text(run.folder / RESULT, json.dumps(values))


def load_run(folder: Path) -> Run:
    """A run that has ended, from its folder.

    Raises:
        KilnError: it left no LoRA, or its files are damaged.
    """
    if not (folder / RESULT).is_file() or not (folder / LORA).is_file():
        raise KilnError(f"The run {folder.name} has left no LoRA yet; resume it on the training node.")
    try:
        values = parse_json((folder / RESULT).read_text("utf-8"))
        lora = LoraWeights(*read_tensors(folder / LORA))
        lora.metadata.pop("modelspec.title", None)  # the run's name: a file that is saved of it has its own
        values["losses"] = [math.nan if x is None else x for x in values["losses"]]
        values["validation"] = [ValidationPoint(**p) for p in values["validation"]]
        values["config"] = TrainConfig.from_dict(values["config"])
        return Run(run_id=folder.name, folder=folder, lora=lora, **values)
    except Exception as error:  # safetensors has its own error type
        raise KilnError(f"The run {folder.name} cannot be read ({error}); choose another one.") from error


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)
