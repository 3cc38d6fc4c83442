"""The checkpoints on disk, found by opening few files: of each checkpoint only its state.json, and that once.

A list of a thousand runs is made again for each prompt, so nothing is opened that the answer does not need: runs are
looked into from the newest on, and what a state.json says is kept until the file changes.
"""

from __future__ import annotations

import functools
import heapq
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..parsers import parse_json

STATE = "state.json"
_PREFIX = "step-"
_NAME = re.compile(_PREFIX + r"[0-9]{8,12}")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a checkpoint's state.json says, without the losses."""

    files: Mapping[str, int]  # bytes of each
    best_step: int | None  # of the lowest validation loss so far
    dataset: str  # fingerprint
    base_model: str  # fingerprint
    adapter: Mapping[str, Any]  # of TrainConfig.to_dict(); empty where there is none


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_folder / f"{_PREFIX}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The inverse."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def whole_checkpoints(run_folder: Path) -> Iterator[Path]:
    """The whole checkpoints of a run, newest first; one is looked into when it is asked for."""
    return filter(is_whole, _step_folders(run_folder))


def find_checkpoints(run_folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return list(whole_checkpoints(run_folder))[::-1]


def newest_checkpoint(run_folder: Path) -> Path | None:
    """The whole checkpoint of the highest step."""
    return next(whole_checkpoints(run_folder), None)


def best_checkpoint(run_folder: Path) -> Path | None:
    """The checkpoint of the lowest validation loss, if it is there."""
    newest = newest_checkpoint(run_folder)
    summary = None if newest is None else read_summary(newest)
    if summary is None or summary.best_step is None:
        return None
    path = checkpoint_path(run_folder, summary.best_step)
    return path if is_whole(path) else None


def is_whole(checkpoint: Path) -> bool:
    """Its state can be read and every file it names has its size: enough to list it; reading also checks the hash."""
    summary = read_summary(checkpoint)
    try:
        return summary is not None and all(
            (checkpoint / name).stat().st_size == size for name, size in summary.files.items()
        )
    except (OSError, ValueError):
        return False


def read_summary(checkpoint: Path) -> Summary | None:
    """What the checkpoint's state says; None where it cannot be read."""
    file = checkpoint / STATE
    try:
        now = file.stat()
        return _read(str(file), (now.st_ino, now.st_mtime_ns, now.st_size))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def runs_newest_first(runs: Path) -> Iterator[Path]:
    """The run folders that hold checkpoints, the one whose newest was written last first. A name does not tell that: a
    run may be resumed, and names tell those that began within one second in no order.

    A run's folder changes when a checkpoint appears in it, so it is never older than that one: folders are listed in
    the order of their own times, and no more of them than are asked for.
    """
    try:
        with os.scandir(runs) as entries:
            waiting = [(-e.stat().st_mtime_ns, e.name, False) for e in entries if e.is_dir()]
    except OSError:
        return
    heapq.heapify(waiting)
    while waiting:
        _, name, is_known = heapq.heappop(waiting)
        if is_known:
            yield runs / name
        elif (written := _newest_time(runs / name)) is not None:
            heapq.heappush(waiting, (-written, name, True))


def _newest_time(run_folder: Path) -> int | None:
    newest = next(iter(_step_folders(run_folder)), None)
    try:
        return None if newest is None else newest.stat().st_mtime_ns
    except OSError:  # deleted meanwhile
        return None


def _step_folders(run_folder: Path) -> list[Path]:
    """The highest step first."""
    try:
        found = [run_folder / name for name in os.listdir(run_folder) if _NAME.fullmatch(name)]
    except (OSError, ValueError):
        return []
    return sorted(found, key=step_of, reverse=True)


@functools.lru_cache(maxsize=4096)
def _read(file: str, version: tuple[int, int, int]) -> Summary:
    """version: inode, time and size, which tell that the file is the one that was read."""
    values = parse_json(Path(file).read_text("utf-8"))
    points = [p for p in values.get("validation", ()) if p["step"] > 0 and math.isfinite(p["loss"])]
    return Summary(
        files={str(name): int(f["bytes"]) for name, f in values["files"].items()},
        best_step=int(min(points, key=lambda p: p["loss"])["step"]) if points else None,
        dataset=str(values["dataset"]),
        base_model=str(values["base_model"]),
        adapter=dict(values["config"].get("adapter") or {}),
    )
