"""Which checkpoint a run goes on from: what can be chosen, and whether it fits what is connected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..config import AdapterConfig, TrainConfig, without_prompts
from ..dataset.encoded import EncodedItem
from ..errors import CannotResume, KilnError, shortened
from ..parsers import parse_json
from ..safefile import write_text
from .checkpoint import read_state
from .checkpoint_list import (
    STATE,
    best_checkpoint,
    checkpoint_path,
    newest_checkpoint,
    read_summary,
    runs_newest_first,
    step_of,
    whole_checkpoints,
)
from .differences import Difference, changed_settings, differences
from .run import Run, load_run

NEW_RUN, LATEST = "new run", "latest"
ANYWAY = " anyway"  # behind a choice: go on although the dataset is another one
LOOKED_AT = 200  # newest runs among which `latest` looks for one that fits, and among which a list is made
COMPARED = 10  # of them, to say why none fits


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """How a run goes on from a checkpoint."""

    folder: Path
    checkpoint: Path  # in that folder
    parent: str = ""  # id of the run that the checkpoint is of, when this is another run
    notice: str = ""  # for the user
    finished: Run | None = None  # when there is nothing to train and nothing has changed: the run as it ended


def resume_labels(runs: Path, limit: int = 30) -> list[str]:
    """Every checkpoint that could be resumed, newest run first, as a person chooses it: "<run> step 250 best".

    Args:
        runs: folder that holds the runs' folders.
        limit: how many labels at most.
    """
    return list(islice(_labels(runs), limit))


def _labels(runs: Path) -> Iterator[str]:
    for folder in islice(runs_newest_first(runs), LOOKED_AT):
        best = best_checkpoint(folder)
        for path in whole_checkpoints(folder):
            yield f"{folder.name} step {step_of(path)}" + (" best" if path == best else "")


def choose_checkpoint(
    runs: Path,
    choice: str,
    dataset: str,
    base_model: str,
    adapter: AdapterConfig,
    items: Sequence[EncodedItem] = (),
) -> Path | None:
    """The checkpoint that the `resume` of a training node means; None for a new run.

    Args:
        runs: folder of all runs.
        choice: NEW_RUN, LATEST (nothing to resume is a new run), a run's name (its newest) or a resume_label. Behind
            the last two ANYWAY: another dataset is no hindrance.
        dataset, base_model: fingerprints.
        adapter: its kind, rank, alpha and target modules must be the run's.
        items: of the dataset, so that what differs in it can be named.

    Raises:
        KilnError: the chosen one is gone.
        CannotResume: it belongs to another dataset, model or shape of adapter.
    """
    if choice in (NEW_RUN, ""):
        return None
    anyway = choice.endswith(ANYWAY)
    choice = choice.removesuffix(ANYWAY)

    def hindrances(path: Path, items: Sequence[EncodedItem] = ()) -> list[Difference]:
        found = differences(path, dataset, base_model, adapter, items)
        return [d for d in found if not (anyway and d.sound)]

    newest = (newest_checkpoint(folder) for folder in islice(runs_newest_first(runs), LOOKED_AT))
    compatible = (path for path in newest if path and not hindrances(path))
    if choice == LATEST:
        return next(compatible, None)
    name, _, step_text = choice.partition(" step ")
    step = int(step_text.split()[0]) if _is_number(step_text) else None
    for path in whole_checkpoints(runs / Path(name).name):
        if step is None or step_of(path) == step:
            if found := hindrances(path, items):
                raise _refusal(path, found, compatible)
            return path
    raise KilnError(f"There is no checkpoint {shortened(choice)!r} any more. {_compatible_runs(compatible)}")


def _is_number(step_text: str) -> bool:
    first = step_text.split()[:1]
    return bool(first) and first[0].isascii() and first[0].isdigit() and len(first[0]) <= 12


def _compatible_runs(compatible: Iterator[Path]) -> str:
    names = [path.parent.name for path in islice(compatible, 5)]
    if not names:
        return "No run fits these; set resume to 'new run'."
    return f"Runs that fit: {', '.join(names)}."


def _refusal(path: Path, found: list[Difference], compatible: Iterator[Path]) -> CannotResume:
    offer = anyway_label(path) if all(d.sound for d in found) else ""
    why = "; ".join(d.text for d in found)
    cure = f"Set resume to '{offer}' to begin a new run from its checkpoint all the same. " if offer else ""
    return CannotResume(
        f"The run {path.parent.name} cannot be resumed: {why}. {cure}{_compatible_runs(compatible)}", offer
    )


def anyway_label(path: Path) -> str:
    """What `resume` may be set to where only the dataset of a checkpoint is another one."""
    return f"{path.parent.name} step {step_of(path)}{ANYWAY}"


def why_anew(
    runs: Path, dataset: str, base_model: str, adapter: AdapterConfig, items: Sequence[EncodedItem] = ()
) -> tuple[str, str]:
    """Why LATEST found nothing to go on from: a sentence and what `resume` may be set to instead; empty where there is
    no run, or nothing sound to offer. Of the newest runs the one is named that differs least."""
    folders = list(islice(runs_newest_first(runs), LOOKED_AT + 1))
    newest = filter(None, map(newest_checkpoint, folders[:LOOKED_AT]))
    found = [
        (path, differences(path, dataset, base_model, adapter, items)) for path in islice(newest, COMPARED)
    ]
    if not found:
        return "", ""
    path, why = min(found, key=lambda pair: (not all(d.sound for d in pair[1]), len(pair[1])))
    sentence = (
        f"A new run: the run {path.parent.name} ({step_of(path)} steps) is not gone on with, "
        f"because {'; '.join(d.text for d in why)}."
    )
    if len(folders) > LOOKED_AT:
        sentence += (
            f" Only the newest {LOOKED_AT} runs were compared; an older one can be chosen by its name."
        )
    return sentence, anyway_label(path) if all(d.sound for d in why) else ""


def continue_run(resumed: Path, fresh: Path, config: TrainConfig, dataset: str) -> Continuation:
    """Where and as what a run goes on from a checkpoint, so that no run's own record is ever rewritten.

    With the settings it had, and more steps than it has done, it is the same run; with as many as it has done, it is
    the run as it ended, or, where it was stopped there or its process was killed before it had written its LoRA and its
    result, one that has only these to write. With other settings, or from a step that is not its newest, a copy goes
    on: a new run that names its parent.

    Args:
        resumed: the checkpoint.
        fresh: the folder of a new run.
        config: settings, with every auto written out.
        dataset: fingerprint of the dataset that is connected.

    Raises:
        KilnError: nothing would be left to train, or the copy cannot be written; nothing is left of it.
    """
    state, name = read_state(resumed), resumed.parent.name
    changed = changed_settings(state.config, config)
    if state.dataset != dataset:
        changed.append("its dataset is another one")
    newest = resumed == newest_checkpoint(resumed.parent)
    if newest and not changed and config.steps == state.step:
        ended = _as_it_ended(resumed.parent)
        if ended is not None and len(ended.losses) == state.step and not ended.stopped:
            return Continuation(folder=resumed.parent, checkpoint=resumed, finished=ended)
        notice = (
            f"The run {name} has done its {state.step} steps: nothing is trained, and its LoRA is made from the newest "
            "checkpoint."
        )
        return Continuation(folder=resumed.parent, checkpoint=resumed, notice=notice)
    if config.steps <= state.step:
        raise KilnError(
            f"The run {name} has done {state.step} steps and steps is {config.steps}: nothing is left to train. Raise "
            f"steps above {state.step}, or set resume to 'new run'."
        )
    if newest and not changed:
        return Continuation(folder=resumed.parent, checkpoint=resumed)
    try:
        folder = run_folder_for(resumed, fresh, copy=True)
        for copied in folder.glob("step-*"):
            _adopt(copied, dataset, config)
    except (OSError, KilnError) as error:  # shutil.Error is an OSError
        shutil.rmtree(fresh, ignore_errors=True)
        raise KilnError(
            f"The checkpoint {resumed.name} of the run {name} cannot be copied for a new run "
            f"({shortened(str(error))}); free some disk space."
        ) from error
    notice = f"A new run that goes on from step {state.step} of the run {name}."
    if changed:
        notice = f"A new run that goes on from step {state.step} of the run {name} ({'; '.join(changed)})."
    return Continuation(folder=folder, checkpoint=folder / resumed.name, parent=name, notice=notice)


def _as_it_ended(run_folder: Path) -> Run | None:
    try:
        return load_run(run_folder)
    except KilnError:
        return None


def _adopt(copied: Path, dataset: str, config: TrainConfig) -> None:
    """Make a copied checkpoint one of a run on that dataset, which keeps metadata or not."""
    file = copied / STATE
    values = parse_json(file.read_text("utf-8"))
    before = values["config"] if config.embed_metadata else without_prompts(values["config"])
    write_text(file, json.dumps({**values, "dataset": dataset, "config": before}))


def run_folder_for(resumed: Path, fresh: Path, copy: bool = False) -> Path:
    """The folder in which a resumed run goes on: its own, or, from a step that is not its newest or on demand, a copy,
    so that what came after that step stays what it was."""
    run_folder = resumed.parent
    if not copy and resumed == newest_checkpoint(run_folder):
        return run_folder
    summary = read_summary(resumed)
    for path in {resumed, checkpoint_path(run_folder, (summary and summary.best_step) or 0)}:
        if path.is_dir():
            shutil.copytree(path, fresh / path.name)
    return fresh
