"""What `auto` means for each model family, by the tables of families.py: how noise levels are drawn, and which sizes
the model is told.

`resolve` writes the values out once, before a run; the run's record, its run.toml and its checkpoints hold them, and a
resumed run keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from .config import AUTO, AUTO_SHIFT, ObjectiveConfig, Prediction
from .families import DIFFUSION, NOISE_DEFAULTS, SIZE_CONDITIONED, NoiseDefaults


class Described(Protocol):
    """The part of a Denoiser that defaults depend on."""

    family: tuple[str, ...]
    prediction: Prediction


def defaults_for(family: Sequence[str], prediction: Prediction) -> NoiseDefaults:
    """family: the model's names, the most special first."""
    if prediction != "flow":
        return DIFFUSION
    return next((NOISE_DEFAULTS[name] for name in family if name in NOISE_DEFAULTS), NoiseDefaults())


def resolve(
    config: ObjectiveConfig, model: Described, resumed: dict[str, Any] | None = None
) -> ObjectiveConfig:
    """The same settings with every auto replaced by its value.

    Args:
        config: as on the nodes.
        model: the model to be trained.
        resumed: the objective of the checkpoint that the run goes on from: what was automatic keeps its value.
            Checkpoints of versions that knew no auto have every value written out.
    """
    defaults = defaults_for(model.family, model.prediction)
    saved: dict[str, Any] = {
        "timestep_sampling": defaults.sampling,
        "shift": defaults.shift,
        "shift_by_size": defaults.shift_by_size,
        "size_conditioning": "item",
    }
    if resumed is not None:
        saved |= {"shift_by_size": "", "size_conditioning": "768", **resumed}
    changes: dict[str, Any] = {}
    if config.timestep_sampling == AUTO:
        changes["timestep_sampling"] = saved["timestep_sampling"]
    if config.shift == AUTO_SHIFT and not config.shift_by_size:
        by_size = saved["shift_by_size"]
        changes |= {"shift_by_size": by_size, "shift": AUTO_SHIFT if by_size else saved["shift"]}
    if config.size_conditioning == AUTO:
        changes["size_conditioning"] = saved["size_conditioning"]
    if changes:
        changes["automatic"] = ", ".join(changes)
    return replace(config, **changes)


def as_chosen(record: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run's record as they were on the nodes: what was automatic is auto again."""
    objective = dict(record.get("objective", {}))
    usual = ObjectiveConfig()
    for name in filter(None, objective.get("automatic", "").split(", ")):
        objective[name] = getattr(usual, name)
    for name in ("automatic", "shift_by_size"):
        objective.pop(name, None)
    return {**record, "objective": objective}


def shift_at(config: ObjectiveConfig, shape: Sequence[int]) -> float:
    """The shift of latents of the shape (C, [F,] h, w); `config` is resolved."""
    if not config.shift_by_size:
        assert config.shift != AUTO_SHIFT, "the config is resolved before a run"
        return config.shift
    patch, n1, mu1, n2, mu2 = map(float, config.shift_by_size.split(","))
    frames = shape[1] if len(shape) == 4 else 1
    tokens = frames * (shape[-2] / patch) * (shape[-1] / patch)
    return math.exp(mu1 + (mu2 - mu1) * (tokens - n1) / (n2 - n1))


def family_is_told_sizes(family: Sequence[str]) -> bool:
    """Whether the model is told original size, crop and target size."""
    return not SIZE_CONDITIONED.isdisjoint(family)
