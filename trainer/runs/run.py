"""A run as others see it after it has ended: what nodes pass on as KILN_RUN."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..config import AdapterConfig, TrainConfig
from ..errors import KilnError
from ..events import ValidationPoint
from ..lora_files.lora_weights import LoraWeights
from ..safefile import write_text
from . import checkpoint


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
        measured = {} if best is None else {"best_step": best.step, "best_validation": round(best.loss, 4)}
        return {
            "run": self.run_id,
            "steps": len(self.losses),
            "seconds": round(self.seconds, 1),
            "first_loss": round(_mean(self.losses[:50]), 4),
            "last_loss": round(_mean(self.losses[-50:]), 4),
            "parameters_percent": round(100 * self.trained_parameters / max(self.model_parameters, 1), 2),
            "megabytes": round(sum(t.nbytes for t in self.lora.values()) / 1e6, 2),
            **measured,
        }

    def sentence(self) -> str:
        """The same for the node's text."""
        s = self.summary()
        verb = "stopped after" if self.stopped else "done:"
        return (
            f"{verb} {s['steps']} steps in {s['seconds']:.0f} s, loss {s['first_loss']:.3f} -> {s['last_loss']:.3f}; "
            f"{s['parameters_percent']} % of the model's parameters, {s['megabytes']} MB"
            + (
                f"; validation best {s['best_validation']:.4f} at step {s['best_step']}"
                if "best_step" in s
                else ""
            )
        )


RESULT, LORA = "result.json", "lora.safetensors"  # in a run's folder, when it has ended


def save_result(run: Run) -> None:
    """Leave beside the LoRA what load_run needs.

    Raises:
        KilnError: writing failed.
    """
    values = {
        "config": run.config.to_dict(),
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
        values = json.loads((folder / RESULT).read_text("utf-8"))
        with safe_open(folder / LORA, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
            lora = LoraWeights(tensors, opened.metadata())
        values["losses"] = [math.nan if x is None else x for x in values["losses"]]
        values["validation"] = [ValidationPoint(**p) for p in values["validation"]]
        values["config"] = TrainConfig.from_dict(values["config"])
        return Run(run_id=folder.name, folder=folder, lora=lora, **values)
    except Exception as error:  # safetensors has its own error type
        raise KilnError(f"The run {folder.name} cannot be read ({error}); choose another one.") from error


NEW_RUN, LATEST = "new run", "latest"


def resume_labels(runs: Path, limit: int = 30) -> list[str]:
    """Every checkpoint that could be resumed, newest run first, as a person chooses it: "<run> step 250 best".

    Args:
        runs: folder that holds the runs' folders.
        limit: how many labels at most.
    """
    labels: list[str] = []
    for paths in _checkpoints_by_run(runs):
        if len(labels) >= limit:
            break
        best = checkpoint.best_checkpoint(paths[0].parent)
        for path in paths:
            step = checkpoint.read_state(path).step
            labels.append(f"{path.parent.name} step {step}" + (" best" if path == best else ""))
    return labels[:limit]


def choose_checkpoint(
    runs: Path, choice: str, dataset: str, base_model: str, adapter: AdapterConfig
) -> Path | None:
    """The checkpoint that the `resume` of a training node means; None for a new run.

    Args:
        runs: folder of all runs.
        choice: NEW_RUN, LATEST (nothing to resume is a new run), a run's name (its newest) or a resume_label.
        dataset, base_model: fingerprints.
        adapter: its kind, rank, alpha and target modules must be the run's.

    Raises:
        KilnError: the chosen one is gone, or belongs to another dataset, model or shape of adapter.
    """
    found = [path for paths in _checkpoints_by_run(runs) for path in paths]
    fits = [path for path in found if _fits(path, dataset, base_model, adapter)]
    if choice in (NEW_RUN, ""):
        return None
    if choice == LATEST:
        return fits[0] if fits else None
    name, _, rest = choice.partition(" step ")
    step = int(rest.split()[0]) if rest and rest.split()[0].isdigit() else None
    for path in checkpoint.find_checkpoints(runs / Path(name).name)[::-1]:
        if step is None or checkpoint.read_state(path).step == step:
            if path in fits:
                return path
            raise KilnError(
                f"The run {name} cannot be resumed: its dataset, model, or the kind, rank, alpha or target modules "
                f"of its adapter are not those connected now. {_offer(fits)}"
            )
    raise KilnError(f"There is no checkpoint {choice!r} any more. {_offer(fits)}")


def _offer(fits: list[Path]) -> str:
    if not fits:
        return "No run fits these; set resume to 'new run'."
    names = list(dict.fromkeys(p.parent.name for p in fits))
    return f"Runs that fit: {', '.join(names[:5])}."


def _checkpoints_by_run(runs: Path) -> list[list[Path]]:
    """The checkpoints of each run, the newest step first, and the run whose newest was written last first. Its name
    does not tell that: a run may be resumed, and names tell those that began within one second in no order."""
    found = [checkpoint.find_checkpoints(folder)[::-1] for folder in runs.glob("*")]
    return sorted(filter(None, found), key=lambda paths: paths[0].stat().st_mtime_ns, reverse=True)


def _fits(path: Path, dataset: str, base_model: str, adapter: AdapterConfig) -> bool:
    state = checkpoint.read_state(path)
    try:
        shape = AdapterConfig(**state.config["adapter"])
    except (TypeError, KilnError):  # of a version with other settings
        return False
    return (state.dataset, state.base_model, *_shape(shape)) == (dataset, base_model, *_shape(adapter))


def _shape(adapter: AdapterConfig) -> tuple[object, ...]:
    return (
        adapter.kind,
        adapter.rank,
        adapter.alpha,
        adapter.target_modules,
        adapter.exclude_modules,
        adapter.rank_pattern,
    )


def run_folder_for(resumed: Path, fresh: Path) -> Path:
    """The folder in which a resumed run goes on: its own, or, from a step that is not its newest, a copy, so that
    what came after that step stays what it was."""
    own = resumed.parent
    if resumed == checkpoint.find_checkpoints(own)[-1]:
        return own
    for path in {resumed, own / f"step-{checkpoint.read_state(resumed).best_step or 0:08d}"}:
        if path.is_dir():
            shutil.copytree(path, fresh / path.name)
    return fresh


def _mean(values: list[float]) -> float:
    finite = [x for x in values if math.isfinite(x)]
    return sum(finite) / max(len(finite), 1)
