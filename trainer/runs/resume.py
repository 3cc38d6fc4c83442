"""Which checkpoint a run goes on from: what can be chosen, and whether it fits what is connected."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..config import AdapterConfig
from ..errors import KilnError
from . import checkpoint

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
    paths_by_run = _checkpoints_by_run(runs)
    compatible = [
        path for paths in paths_by_run for path in paths if _is_compatible(path, dataset, base_model, adapter)
    ]
    if choice in (NEW_RUN, ""):
        return None
    if choice == LATEST:
        return compatible[0] if compatible else None
    name, _, step_text = choice.partition(" step ")
    step = int(step_text.split()[0]) if step_text and step_text.split()[0].isdigit() else None
    for path in checkpoint.find_checkpoints(runs / Path(name).name)[::-1]:
        if step is None or checkpoint.read_state(path).step == step:
            if path in compatible:
                return path
            raise KilnError(
                f"The run {name} cannot be resumed: its dataset, model, or the kind, rank, alpha or target modules "
                f"of its adapter are not those connected now. {_compatible_runs(compatible)}"
            )
    raise KilnError(f"There is no checkpoint {choice!r} any more. {_compatible_runs(compatible)}")


def _compatible_runs(compatible: list[Path]) -> str:
    if not compatible:
        return "No run fits these; set resume to 'new run'."
    names = list(dict.fromkeys(p.parent.name for p in compatible))
    return f"Runs that fit: {', '.join(names[:5])}."


def _checkpoints_by_run(runs: Path) -> list[list[Path]]:
    """The checkpoints of each run, the newest step first, and the run whose newest was written last first. Its name
    does not tell that: a run may be resumed, and names tell those that began within one second in no order."""
    by_run = [checkpoint.find_checkpoints(folder)[::-1] for folder in runs.glob("*")]
    return sorted(filter(None, by_run), key=lambda paths: paths[0].stat().st_mtime_ns, reverse=True)


def _is_compatible(path: Path, dataset: str, base_model: str, adapter: AdapterConfig) -> bool:
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
    run_folder = resumed.parent
    if resumed == checkpoint.find_checkpoints(run_folder)[-1]:
        return run_folder
    for path in {resumed, run_folder / f"step-{checkpoint.read_state(resumed).best_step or 0:08d}"}:
        if path.is_dir():
            shutil.copytree(path, fresh / path.name)
    return fresh
