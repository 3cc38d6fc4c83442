"""What the dataset page shows beside names and captions: sizes, buckets, warnings, what is left out.

It comes from the same scan that Load Dataset does, on a thread of its own, one folder at a time; the page asks again
until it is there. A scan that nobody asks for any more ends, and keeps what it has measured.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..trainer.dataset.browse import Part, part_state
from ..trainer.dataset.buckets import BucketOptions, bucket_of, crop_lost
from ..trainer.dataset.items import Dataset
from ..trainer.dataset.report import DatasetReport
from ..trainer.dataset.scan import ScanOptions, scan_folder
from ..trainer.errors import KilnError
from .host import paths

PATIENCE = 15.0  # seconds after the last question, when a scan ends
KEPT = 4  # scans

Key = tuple[str, Part, str]
"""Folder, part of it, and its state."""

_pool = ThreadPoolExecutor(1, thread_name_prefix="kiln-scan")
_lock = threading.Lock()
_scans: dict[Key, Scan] = {}


class _Abandoned(Exception):
    """Nobody asks any more."""


@dataclass
class Scan:
    """One look at a folder."""

    done: int = 0
    total: int = 0
    asked: float = field(default_factory=time.monotonic)
    dataset: Dataset | None = None
    error: str = ""
    ended: bool = False
    reports: dict[BucketOptions, dict[str, Any]] = field(default_factory=dict)


def figures(folder: Path, part: Part, options: BucketOptions) -> dict[str, Any]:
    """What is known by now.

    Returns:
        {"ready": false, "done": n, "total": n}, or {"ready": true, "error": "", "items": {name: figures},
        "bad": {name: why it is left out}, "controls": [name of a control picture that is no item],
        "skipped": [sentence], "remarks": [sentence]}; figures as in web/dataset_api.mjs.
    """
    scan = _look(folder, part)
    if not scan.ended:
        return {"ready": False, "done": scan.done, "total": scan.total}
    if options not in scan.reports:
        scan.reports = {options: _figures(scan, folder, options)}
    return scan.reports[options]


def told(folder: Path, part: Part) -> dict[str, Any]:
    """The same without the items, for the node.

    Returns:
        {"ready": false, "done": n, "total": n}, or {"ready": true, "error", "skipped", "remarks", "count", "clips",
        "without"}: items that are read, clips among them and those without a caption.
    """
    scan = _look(folder, part)
    if not scan.ended:
        return {"ready": False, "done": scan.done, "total": scan.total}
    items = scan.dataset.items if scan.dataset is not None else ()
    return {
        "ready": True,
        "count": len(items),
        "clips": sum(item.facts.frames > 1 for item in items),
        "without": sum(not item.caption for item in items),
        **_left_out(scan),
    }


def _look(folder: Path, part: Part) -> Scan:
    """The look at a folder as it is now, which may have to be begun."""
    key = (str(folder), part, part_state(folder, part))
    with _lock:
        scan = _scans.get(key)
        if scan is None:
            for (name, *_), older in _scans.items():
                if name == key[0]:
                    older.asked = -PATIENCE  # files have changed: it looks at what is not there any more
            scan = _scans[key] = Scan()
            for old in list(_scans)[:-KEPT]:
                del _scans[old]
            _pool.submit(_run, scan, key, folder)
        scan.asked = time.monotonic()
    return scan


def _run(scan: Scan, key: Key, folder: Path) -> None:
    def step(done: int, total: int) -> None:
        scan.done, scan.total = done, total
        if time.monotonic() - scan.asked > PATIENCE:
            raise _Abandoned

    try:
        if time.monotonic() - scan.asked > PATIENCE:
            raise _Abandoned
        part = key[1]
        chosen = ScanOptions(
            recursive=part.recursive,
            validation_folder=part.also,
            control_folders=part.controls,
            masks=part.masks,
            on_bad_file="skip",
        )
        scan.dataset = scan_folder(folder, chosen, facts_cache=paths.facts_cache(), on_progress=step)
    except KilnError as error:
        scan.error = str(error)
    except _Abandoned:
        with _lock:
            _scans.pop(key, None)
    except Exception as error:  # the page says so instead of waiting for ever
        scan.error = f"The folder cannot be read ({type(error).__name__}: {error}); look at ComfyUI's log."
        raise
    finally:
        scan.ended = True


def _figures(scan: Scan, folder: Path, options: BucketOptions) -> dict[str, Any]:
    dataset = scan.dataset
    if dataset is None:
        return {"ready": True, "items": {}, "bad": {}, "controls": [], **_left_out(scan)}
    found: dict[int, list[dict[str, Any]]] = {}
    for problem in DatasetReport(dataset, options).problems:
        told = {"kind": problem.kind, "text": problem.text, "severe": problem.severe}
        found.setdefault(problem.item, []).append(told)
    items = {}
    for index, item in enumerate(dataset.items):
        bucket = bucket_of(item, options)
        items[item.path.relative_to(folder).as_posix()] = {
            "width": item.facts.width,
            "height": item.facts.height,
            "frames": item.facts.frames,
            "seconds": round(item.facts.seconds, 2),
            "bucket": str(bucket),
            "lost": round(crop_lost(item, bucket), 3),
            "repeats": item.repeats,
            "masked": item.masked,
            "warnings": found.get(index, []),
        }
    bad = {path.relative_to(folder).as_posix(): reason for path, reason in dataset.bad}
    return {
        "ready": True,
        "items": items,
        "bad": bad,
        "controls": _controls(dataset, folder),
        **_left_out(scan),
    }


def _controls(dataset: Dataset, folder: Path) -> list[str]:
    items = {item.path for item in dataset.items}
    used = {control.path for item in dataset.items for control in item.controls} - items
    return sorted(path.relative_to(folder).as_posix() for path in used if folder in path.parents)


def _left_out(scan: Scan) -> dict[str, Any]:
    """What the report has under Left out and under Remarks."""
    if scan.dataset is None:
        return {"error": scan.error, "skipped": [], "remarks": []}
    return {"error": "", "skipped": scan.dataset.left_out(), "remarks": list(scan.dataset.remarks)}
