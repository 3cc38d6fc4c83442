"""All that an exact resume needs, written whole or not at all.

A checkpoint is a folder `step-00000250` in the run's folder: built under a temporary name, flushed to disk, renamed
when it is complete. Its state.json is the last file written and holds size and SHA-256 of the others, so a checkpoint
that was cut short or damaged later is told from a whole one and never loaded. `manifest.json` in the run's folder says
which is the newest and which the best. Random numbers need no saving (see rng.py), nor does the learning-rate schedule
(a function of the step).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import KilnError
from ..parsers import parse_json
from ..safefile import read_tensors, write_text
from ..temporary import temporary_path
from .checkpoint_list import STATE, checkpoint_path, find_checkpoints, is_whole
from .optimizer_state import restore_state, state_to_save

log = logging.getLogger(__name__)

ADAPTER, OUTPUT, OPTIMIZER = "adapter.safetensors", "output.safetensors", "optimizer.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands, beside its tensors."""

    step: int  # optimizer steps done
    losses: list[float]  # one per step; nan where the step was skipped
    config: dict[str, Any]  # TrainConfig.to_record()
    dataset: str  # fingerprint
    base_model: str  # fingerprint
    processes: int = 1  # that train together
    validation: list[dict[str, Any]] = field(default_factory=list)  # ValidationPoint as plain values
    guard: dict[str, Any] = field(default_factory=dict)  # GuardState as plain values
    ema_updates: int = 0
    item_losses: dict[str, Any] = field(default_factory=dict)  # ItemLosses as plain values

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss so far."""
        finite = [p for p in self.validation if p["step"] > 0 and math.isfinite(p["loss"])]
        return min(finite, key=lambda p: p["loss"])["step"] if finite else None


def save_checkpoint(
    run_folder: Path,
    state: RunState,
    adapter: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    keep: int = 2,
    output: dict[str, Tensor] | None = None,
) -> Path:
    """Write one checkpoint and remove all but the newest `keep` and the best.

    Args:
        run_folder: made when missing.
        state: where the run stands.
        adapter: the weights as they are trained.
        optimizer: with its memory.
        keep: how many of the newest stay.
        output: the averaged weights (EMA), where the run averages.

    Raises:
        KilnError: writing failed; older checkpoints are untouched.
    """
    final = checkpoint_path(run_folder, state.step)
    if is_whole(final):
        _clean_up(run_folder, keep, state.best_step)  # a process that was killed may not have come to it
        return final
    temporary = temporary_path(final)
    try:
        temporary.mkdir(parents=True)
        tensors, remembered = state_to_save(optimizer)
        save_file(adapter, temporary / ADAPTER)
        save_file(tensors, temporary / OPTIMIZER)
        if output is not None:
            save_file(output, temporary / OUTPUT)
        written = {f.name: {"bytes": f.stat().st_size, "sha256": _hash(f)} for f in temporary.iterdir()}
        values = {**asdict(state), "losses": [x if math.isfinite(x) else None for x in state.losses]}
        text = json.dumps({**values, "optimizer": remembered, "files": written})
        (temporary / STATE).write_text(text, encoding="utf-8")
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        if final.is_dir():  # damaged, or it would have been returned above
            _remove(final)
        os.replace(temporary, final)
        _flush(run_folder)
    except Exception as error:  # safetensors wraps OSError in its own type
        shutil.rmtree(temporary, ignore_errors=True)
        raise KilnError(f"Cannot write the checkpoint {final} ({error}); free some disk space.") from error
    _clean_up(run_folder, keep, state.best_step)
    return final


def read_state(checkpoint: Path) -> RunState:
    """What a checkpoint says of its run.

    Raises:
        KilnError: it cannot be read.
    """
    values = _read_values(checkpoint)
    values.pop("optimizer", None)
    values.pop("files", None)
    try:
        values["losses"] = [math.nan if x is None else x for x in values["losses"]]
        return RunState(**values)
    except (KeyError, TypeError) as error:
        raise _unreadable(checkpoint, error) from error


def read_adapter(checkpoint: Path) -> dict[str, Tensor]:
    """The adapter's state dict as it was trained."""
    return _read_tensors(checkpoint, ADAPTER)


def read_adapter_keys(checkpoint: Path) -> frozenset[str]:
    """The keys of read_adapter, without its values."""
    try:
        with safe_open(checkpoint / ADAPTER, "pt") as opened:
            return frozenset(opened.keys())
    except (SafetensorError, OSError) as error:
        raise _unreadable(checkpoint, error) from error


def read_output(checkpoint: Path) -> dict[str, Tensor]:
    """The adapter's state dict for use: averaged (EMA) where the run averages."""
    return _read_tensors(checkpoint, OUTPUT if (checkpoint / OUTPUT).is_file() else ADAPTER)


def restore_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved memory back; learning rate and other settings stay as the optimizer was made.

    Raises:
        KilnError: it is the memory of another kind of optimizer, or cannot be read.
    """
    tensors = _read_tensors(checkpoint, OPTIMIZER)
    try:
        restore_state(optimizer, tensors, _read_values(checkpoint)["optimizer"])
    except (KeyError, IndexError, ValueError) as error:
        raise KilnError(
            f"The optimizer's memory in {checkpoint.name} does not fit {type(optimizer).__name__}; choose the "
            "optimizer that the run was started with, or start a new run."
        ) from error


def _read_values(checkpoint: Path) -> dict[str, Any]:
    try:
        return parse_json((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(checkpoint, error) from error


def _read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Raises KilnError when the file is not, byte for byte, the one that was written."""
    expected = _read_values(checkpoint)["files"].get(name, {}).get("sha256")
    try:
        if _hash(checkpoint / name) != expected:
            raise ValueError(f"{name} has changed since it was written")
        return read_tensors(checkpoint / name)[0]
    except Exception as error:  # safetensors has its own error type
        raise _unreadable(checkpoint, error) from error


def _unreadable(checkpoint: Path, error: Exception) -> KilnError:
    return KilnError(f"The checkpoint {checkpoint} cannot be read ({error}); resume from another one.")


def _clean_up(run_folder: Path, keep: int, best_step: int | None) -> None:
    """Remove what is neither new nor best, and say in manifest.json what is left; best effort, and made anew with the
    next checkpoint."""
    best = checkpoint_path(run_folder, best_step or 0).name
    for old in find_checkpoints(run_folder)[:-keep]:
        if old.name != best:
            _remove(old)
    names = [p.name for p in find_checkpoints(run_folder)]
    manifest = {"newest": names[-1], "best": best if best in names else None, "whole": names}
    try:
        write_text(run_folder / "manifest.json", json.dumps(manifest, indent=1))
    except KilnError as error:  # the checkpoints are whole
        log.warning("%s", error)


def _remove(checkpoint: Path) -> None:
    """At no moment is half of it there under its name; what cannot be removed stays."""
    going = temporary_path(checkpoint)
    try:
        os.replace(checkpoint, going)
    except OSError:  # Windows, while another program reads a file of it
        going = checkpoint
    shutil.rmtree(going, ignore_errors=True)


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """To the disk itself. A folder can be flushed on POSIX only."""
    if path.is_dir():
        if os.name == "posix":
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        return
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
