"""The runs of the history, as the runs tab shows them and acts on them. Blocking: call it on a thread."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import folder_paths

from ....trainer.config import TrainConfig
from ....trainer.dataset.loading import read_thumbnail
from ....trainer.errors import KilnError
from ....trainer.noise_defaults import as_chosen
from ....trainer.report.curve import Curve, smooth
from ....trainer.runs import artifacts
from ....trainer.runs.hard_items import RankedItem, ranked_items
from ....trainer.runs.history import ORDERS as ORDERS
from ....trainer.runs.history import History, Record
from ....trainer.runs.run import LORA
from ....trainer.runs.samples import thumbnail as small_picture
from .. import paths
from .monitor import find_run

THUMBNAIL = 384  # pixels, the longer side
ITEM_THUMBNAIL = 144
CURVE_COLUMNS = 500


class UnknownRun(Exception):
    """The history holds no run of that id."""


def page(words: str, order: str, offset: int, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Some of the runs that hold all of the words, and how many there are."""
    with _history() as history:
        records, total = history.page(words, order, offset=offset, limit=limit)
        return [_shown(history, r) for r in records], total


def curve(run_id: str) -> dict[str, Any]:
    """A run's curve, thinned out."""
    with _history() as history:
        _known(history, run_id)
        losses = history.curve(run_id)
        rates = dict(history.curve(run_id, "learning_rate"))
        measured = history.curve(run_id, "validation")
    whole = Curve()
    for (step, loss), mean in zip(losses, smooth(v for _, v in losses), strict=True):
        whole.add_point(step, loss, mean, rates.get(step, 0.0))
    return {"points": whole.thinned(CURVE_COLUMNS), "validation": [p for p in measured if p[1] == p[1]]}


def graph(run_id: str) -> dict[str, Any]:
    """The graph that the run's LoRA carries.

    Raises:
        KilnError: it has left no LoRA.
    """
    return artifacts.read_graph(_folder(run_id))


def thumbnail(run_id: str, place: int) -> bytes | None:
    """The run's sample of that number as a small JPEG; None where there is none."""
    with _history() as history:
        _known(history, run_id)
        samples = history.samples(run_id)
    path = samples[place][2].resolve() if place < len(samples) else None
    roots = (paths.kiln_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory())
    if path is None or not path.is_file() or not any(Path(r).resolve() in path.parents for r in roots):
        return None
    return small_picture(path, THUMBNAIL)


def items(run_id: str) -> dict[str, Any]:
    """The items with the highest and the lowest loss, each end first, as api.mjs calls HardItems.

    Raises:
        KilnError: the run knows nothing of its items.
    """
    ends = ranked_items(_folder(run_id), paths.places())
    return {name: [_shown_item(i) for i in end] for name, end in zip(("high", "low"), ends, strict=True)}


def _shown_item(item: RankedItem) -> dict[str, Any]:
    figures = {
        name: getattr(item, name) for name in ("number", "name", "times", "loss", "draws", "stands_out")
    }
    return {**figures, "picture": _picture(item.source)}


def _picture(path: Path | None) -> str:
    """An address that holds a small JPEG itself; empty where there is none."""
    if path is None or not paths.may_show(path):
        return ""
    try:
        small = read_thumbnail(path, 1, ITEM_THUMBNAIL)
    except KilnError:  # moved or deleted since
        return ""
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def rate(run_id: str, rating: int | None, notes: str | None, name: str | None = None) -> dict[str, Any]:
    """Write what the user thinks; the run as it is now."""
    with _history() as history:
        _known(history, run_id)
        history.rate(run_id, rating, notes, name if name is None else name.strip())
        live = find_run(run_id)
        if live is not None and name is not None:
            live.rename(name.strip())
        return _shown(history, _known(history, run_id))


def what_goes(run_id: str) -> dict[str, Any]:
    """What deleting the run would remove and keep."""
    return _described(artifacts.find_artifacts(_folder(run_id)))


def delete(run_id: str) -> dict[str, Any]:
    """Remove the run's own files and its entry in the history.

    Raises:
        KilnError: it is still running, or a file cannot be deleted.
    """
    folder = _folder(run_id)
    with _history() as history:
        if _status(_known(history, run_id)) == "running" or _is_live(run_id):
            raise KilnError("This run is still going on; finish it first.")
    gone = artifacts.delete_artifacts(folder)
    shutil.rmtree(paths.tensorboard_folder(folder.name), ignore_errors=True)
    with _history() as history:  # opened anew: on a full disk there is room to write only now
        history.forget(run_id)
    return _described(gone)


def _described(found: artifacts.Artifacts) -> dict[str, Any]:
    """What api.mjs calls Artifacts."""
    figures = {name: getattr(found, name) for name in ("bytes", "checkpoints", "samples", "lora")}
    return {**figures, "kept": found.foreign_files}


@contextmanager
def _history() -> Iterator[History]:
    history = History(paths.history_file(), paths.places())
    try:
        yield history
    finally:
        history.close()


def _known(history: History, run_id: str) -> Record:
    record = history.record(run_id)
    if record is None:
        raise UnknownRun
    return record


def _folder(run_id: str) -> Path:
    """The run's folder among our runs. Its name is the id that the history knows, which a client only chose."""
    with _history() as history:
        return _place(_known(history, run_id))


def _place(record: Record) -> Path:
    folder = paths.runs_folder() / record.id
    if folder.parent != paths.runs_folder() or folder.name.startswith(".") or folder.is_symlink():
        raise KilnError(f"The folder of the run {record.id} is not one of ours; look at it by hand.")
    return folder


def _shown(history: History, record: Record) -> dict[str, Any]:
    folder = _place(record)
    samples = history.samples(record.id)
    has_lora = (folder / LORA).is_file()
    return {
        "id": record.id,
        "started": record.started,
        "status": _status(record),
        "live": _is_live(record.id),
        "step": record.step,
        "seconds": record.seconds,
        "items": record.items,
        "held_out": record.held_out,
        "config": (chosen := as_chosen(record.config)),
        "changed": _changed(chosen, TrainConfig().to_dict()),
        "loss": record.loss,
        "best_loss": record.best_loss,
        "best_step": record.best_step,
        "rating": record.rating,
        "notes": record.notes,
        "name": record.name,
        "parent": record.parent,
        "advice": record.advice,
        "message": record.message,
        "samples": [step for step, _, _ in samples],
        "lora": paths.shown(folder / LORA) if has_lora else "",
        "resumable": any(folder.glob("step-*")),
    }


def _is_live(run_id: str) -> bool:
    live = find_run(run_id)
    return live is not None and live.controls is not None


def _status(record: Record) -> str:
    """How a run stands: that it ended in this process is known here, also where the disk was too full to note it."""
    live = find_run(record.id)
    ended = live is not None and live.controls is None
    return live.status if live is not None and ended and record.status == "running" else record.status


def _changed(config: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not the default, nested as they are."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            inner = _changed(value, usual.get(name) or {})
            if inner:
                found[name] = inner
        elif value != usual.get(name):
            found[name] = value
    return found
