"""Every setting of a training run: frozen dataclasses with defaults, units and ranges.

The field is the single source: its metadata gives the range that the constructor checks, and the default, range
and tooltip that the settings nodes show. Read it back with `field_info`. A preset is a plain table of the values
that it puts on the widgets; nothing is changed in secret after that.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from .errors import KilnError

T = TypeVar("T")

Prediction = Literal["flow", "epsilon", "v"]


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    options: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that knows its own range and explanation.

    Args:
        default: value when nothing is chosen.
        doc: tooltip; what it does, unit, useful range.
        minimum, maximum: inclusive range for numbers.
        step: widget increment for floats.
        options: allowed values for strings.
    """
    info = {"doc": doc, "minimum": minimum, "maximum": maximum, "step": step, "options": options}
    return field(default=default, metadata=info)


def field_info(config_class: type) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a config class by name, in order, nested configs left out."""
    return {f.name: f for f in dataclasses.fields(config_class) if "doc" in f.metadata}


def check_ranges(config: Any) -> None:
    """Raise KilnError for the first setting outside its range or options."""
    for name, f in field_info(type(config)).items():
        value, info = getattr(config, name), f.metadata
        if info["options"] is not None and value not in info["options"]:
            raise KilnError(f"{name} is {value!r}; choose one of {', '.join(info['options'])}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise KilnError(f"{name} is {value}; give a finite number.")
        low, high = info["minimum"], info["maximum"]
        if (low is not None and value < low) or (high is not None and value > high):
            raise KilnError(f"{name} is {value}; it must lie between {low:g} and {high:g}.")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained: the shape of the low-rank update W' = W + (alpha / rank) * B A."""

    rank: int = setting(
        64,
        "Inner dimension r of the update. More rank learns more detail and makes a larger file. "
        "Range 8-128 in common use; 32 for a quick trial, 96 for a character.",
        minimum=1,
        maximum=1024,
    )
    alpha: float = setting(
        32.0,
        "Scale of the update: it is multiplied by alpha / rank. Half of the rank up to the rank is usual.",
        minimum=0.001,
        maximum=4096.0,
        step=1.0,
    )
    dropout: float = setting(
        0.05,
        "Share of the inputs of each LoRA layer that is zeroed while training; 0.05-0.2 is usual. Raise it against "
        "overfitting.",
        minimum=0.0,
        maximum=0.9,
        step=0.01,
    )
    target_modules: str = setting(
        "",
        "Which layers get a LoRA. Empty: every linear layer inside the model's blocks (for Wan: q k v o ffn.0 ffn.2). "
        "Otherwise a list of name endings (q k v o; diffusers names such as to_q are understood) or one regular "
        "expression over the full layer name.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the adapter's weights move: AdamW, its schedule and its limits."""

    learning_rate: float = setting(
        1e-4,
        "Peak learning rate. 1e-5 to 1e-4 is usual for Wan; small ranks and short runs bear more.",
        minimum=0.0,
        maximum=1.0,
        step=1e-6,
    )
    weight_decay: float = setting(
        1e-4,
        "Decoupled weight decay of AdamW (L2 pull towards zero). Raise it against overfitting.",
        minimum=0.0,
        maximum=1.0,
        step=1e-5,
    )
    schedule: str = setting(
        "cosine",
        "Course of the learning rate after the warmup.",
        options=("constant", "linear", "cosine"),
    )
    warmup_ratio: float = setting(
        0.05,
        "Share of all steps over which the learning rate rises from zero, 0.01-0.1 is usual.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradients whose total L2 norm is larger are scaled down to it. 0 switches clipping off.",
        minimum=0.0,
        maximum=1000.0,
        step=0.1,
    )
    gradient_accumulation: int = setting(
        1,
        "Batches whose gradients are averaged into one step: the effective batch is batch_size times this, "
        "at the memory of batch_size.",
        minimum=1,
        maximum=1024,
    )
    beta1: float = setting(0.9, "Decay of AdamW's running mean.", minimum=0.0, maximum=0.9999, step=0.001)
    beta2: float = setting(
        0.999, "Decay of AdamW's running variance.", minimum=0.0, maximum=0.99999, step=0.001
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """At which noise levels the model is trained."""

    timestep_sampling: str = setting(
        "logit_normal",
        "How noise levels are drawn: logit_normal favours the middle, uniform takes all alike.",
        options=("logit_normal", "uniform"),
    )
    shift: float = setting(
        3.0,
        "Moves drawn noise levels upwards: s -> k*s / (1 + (k-1)*s). 1 leaves them; 3 suits Wan at 480-512 pixels, "
        "5-8 large videos. Flow-matching models only.",
        minimum=0.01,
        maximum=100.0,
        step=0.1,
    )
    min_timestep: float = setting(
        0.0,
        "Lowest noise level trained, as a share 0-1 of the model's whole range. Wan 2.2's low-noise experts: 0.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    max_timestep: float = setting(
        1.0,
        "Highest noise level trained, as a share 0-1 of the model's whole range. Wan 2.2's low-noise experts: 0.875 "
        "(text to video), 0.9 (image to video).",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min_timestep >= self.max_timestep:
            raise KilnError(
                f"min_timestep is {self.min_timestep} and max_timestep {self.max_timestep}; "
                "the minimum must be smaller."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One whole run."""

    steps: int = setting(
        1500,
        "Optimizer steps. 500 for a first look, 1500 standard, 2000 for a character; 500-5000 in common use.",
        minimum=1,
        maximum=1_000_000,
    )
    batch_size: int = setting(
        1,
        "Items per batch, 1-8; 2 fits 24 GB. Every batch is made of items of one size.",
        minimum=1,
        maximum=256,
    )
    seed: int = setting(
        0,
        "Start of every random draw of the run. The same seed and settings give the same LoRA.",
        minimum=0,
        maximum=0xFFFFFFFFFFFFFFFF,
    )
    checkpoint_every: int = setting(
        250,
        "Steps between checkpoints on disk, 0 for only at a stop. A run is resumed from its newest checkpoint.",
        minimum=0,
        maximum=1_000_000,
    )
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def warmup_steps(self) -> int:
        """Steps of the warmup; never the whole run."""
        return min(round(self.steps * self.optimizer.warmup_ratio), self.steps - 1)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of to_dict.

        Raises:
            KilnError: a key is unknown or a value is out of range.
        """
        nested: dict[str, type] = {
            "adapter": AdapterConfig,
            "optimizer": OptimizerConfig,
            "objective": ObjectiveConfig,
        }
        plain = {k: v for k, v in values.items() if k not in nested}
        parts: dict[str, Any] = {k: _build(c, values.get(k, {})) for k, c in nested.items()}
        return _build(cls, {**plain, **parts})


def _build(config_class: type[T], values: dict[str, Any]) -> T:
    known = {f.name for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise KilnError(f"Unknown setting {unknown[0]!r}; known here are {', '.join(sorted(known))}.")
    return config_class(**values)


PRESETS: dict[str, dict[str, float]] = {
    # The three recipes of the tuning guide: what each puts on the visible widgets of the training node.
    "quick trial": {"steps": 500, "learning_rate": 1e-4, "rank": 32, "alpha": 32.0, "batch_size": 1},
    "standard": {"steps": 1500, "learning_rate": 1e-4, "rank": 64, "alpha": 32.0, "batch_size": 1},
    "character": {"steps": 2000, "learning_rate": 1e-4, "rank": 96, "alpha": 32.0, "batch_size": 1},
}
