"""Runs of earlier server processes as the canvas sees them, from the history. Blocking: call it on a thread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....trainer.report.curve import Curve, smooth
from ....trainer.runs.checkpoint_list import newest_checkpoint, step_of
from ....trainer.runs.history import History, Record
from .. import paths


@dataclass
class RunHistory:
    """A run's curves and samples up to a step, from the history."""

    curve: Curve = field(default_factory=Curve)
    validation: list[tuple[int, float]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)  # Sample of web/samples.mjs
    record: Record | None = None


def load_run_history(run_id: str, until: int | None = None) -> RunHistory:
    """A run's curves and samples up to a step, all by default; empty when the history holds no such run."""
    history = History(paths.history_file(), paths.places())
    try:
        record = history.record(run_id)
        if record is None:
            return RunHistory()

        def before(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
            return [(s, v) for s, v in points if math.isfinite(v) and (until is None or s <= until)]

        losses = before(history.curve(run_id))
        rates = dict(history.curve(run_id, "learning_rate"))
        measured = before(history.curve(run_id, "validation"))
        drawn = [s for s in history.samples(run_id) if until is None or s[0] <= until]
    finally:
        history.close()
    means = smooth([loss for _, loss in losses])
    points = [
        (step, loss, mean, rates.get(step, 0.0)) for (step, loss), mean in zip(losses, means, strict=True)
    ]
    samples = [_sample(step, prompt, path) for step, prompt, path in drawn if path.is_file()]
    return RunHistory(Curve(points), measured, samples, record)


def newest_step(run_id: str) -> int | None:
    """Of the checkpoint that a run can be resumed from; None where it has left none."""
    folder = paths.runs_folder() / run_id
    found = newest_checkpoint(folder) if run_id and folder.parent == paths.runs_folder() else None
    return None if found is None else step_of(found)


def _sample(step: int, prompt: str, path: Path) -> dict[str, Any]:
    place = int(path.stem.rpartition("-")[2])  # see trainer.runs.samples.sample_path
    return {
        "step": step,
        "place": place,
        "prompt": prompt,
        "animated": path.with_suffix(".webp").is_file(),
    }
