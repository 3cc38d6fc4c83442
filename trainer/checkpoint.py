"""All that an exact resume needs, written whole or not at all.

A checkpoint is a folder `step-00000250` in the run's folder, built under a temporary name and renamed when it is
complete, so a folder with that name is always whole. Random numbers need no saving (see rng.py), nor does the
learning-rate schedule (a function of the step).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import KilnError

_PATTERN = "step-{:08d}"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands, beside its tensors."""

    step: int  # optimizer steps done
    losses: list[float]  # one per step
    config: dict[str, Any]  # TrainConfig.to_dict()
    dataset: str  # fingerprint
    base_model: str  # fingerprint


def save_checkpoint(
    run_folder: Path,
    state: RunState,
    adapter: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    keep: int = 2,
) -> Path:
    """Write one checkpoint and remove all but the newest `keep`.

    Raises:
        KilnError: writing failed; older checkpoints are untouched.
    """
    final = run_folder / _PATTERN.format(state.step)
    if final.is_dir():
        return final
    temporary = run_folder / f".{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(adapter, temporary / "adapter.safetensors")
        save_file(_flatten(optimizer.state_dict()["state"]), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
        for written in temporary.iterdir():
            with open(written, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, final)
    except Exception as error:  # safetensors wraps OSError in its own type
        shutil.rmtree(temporary, ignore_errors=True)
        raise KilnError(f"Cannot write the checkpoint {final} ({error}); free some disk space.") from error
    for old in find_checkpoints(run_folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def find_checkpoints(run_folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in run_folder.glob("step-*") if (p / "state.json").is_file())


def read_state(checkpoint: Path) -> RunState:
    """What a checkpoint says of its run.

    Raises:
        KilnError: it cannot be read.
    """
    try:
        return RunState(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise KilnError(
            f"The checkpoint {checkpoint} cannot be read ({error}); resume from another one."
        ) from error


def read_adapter(checkpoint: Path) -> dict[str, Tensor]:
    """LoraAdapter.state_dict() as it was."""
    return load_file(checkpoint / "adapter.safetensors")


def restore_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved state back; learning rate and other options stay as the optimizer was made."""
    current = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def _flatten(state: dict[int, dict[str, Any]]) -> dict[str, Tensor]:
    """{0: {"exp_avg": t}} -> {"0.exp_avg": t}"""
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, entry in state.items()
        for name, value in entry.items()
    }
