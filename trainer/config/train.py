"""One whole run: its own settings and those of every theme."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import KilnError, shortened
from .adapter import AdapterConfig
from .fields import check_ranges, setting
from .guards import GuardConfig
from .memory import MemoryConfig
from .objective import ObjectiveConfig
from .optimizer import OptimizerConfig
from .sample import PROMPTS, SampleConfig
from .validation import ValidationConfig

T = TypeVar("T")


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
    keep_checkpoints: int = setting(
        2, "Newest checkpoints of a run that stay on disk, beside its best.", minimum=1, maximum=1000
    )
    embed_metadata: bool = setting(
        True,
        "Write the workflow, tag counts, trigger word and a thumbnail into the LoRA, the workflow into samples, and "
        "prompts and captions into the run's folder. Off: only figures such as rank, steps and hashes, as with "
        "ComfyUI's --disable-metadata; the model's file name and those of encoded files, which a rerun needs, stay in "
        "the run's folder.",
    )
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        a = self.adapter
        if self.memory.compile_blocks and (
            a.kind != "lora" or a.dropout or a.rank_dropout or a.init == "pissa"
        ):
            raise KilnError(
                "compile_blocks is for the kind lora without dropout, rank_dropout and pissa; change these or switch "
                "compile_blocks off."
            )

    @property
    def warmup_steps(self) -> int:
        """Steps of the warmup; never the whole run."""
        asked = self.optimizer.warmup_steps or round(self.steps * self.optimizer.warmup_ratio)
        return min(asked, self.steps - 1)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return dataclasses.asdict(self)

    def to_record(self) -> dict[str, Any]:
        """to_dict() as files of a run hold it: with embed_metadata off without the samples' prompts, which a run does
        not need to go on."""
        values = self.to_dict()
        return values if self.embed_metadata else without_prompts(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of to_dict.

        Raises:
            KilnError: a key is unknown or a value is out of range.
        """
        plain = {k: v for k, v in values.items() if k not in THEMES}
        parts: dict[str, Any] = {k: _build(c, values.get(k, {})) for k, c in THEMES.items()}
        return _build(cls, {**plain, **parts})


THEMES: dict[str, type] = {
    "adapter": AdapterConfig,
    "optimizer": OptimizerConfig,
    "objective": ObjectiveConfig,
    "validation": ValidationConfig,
    "guards": GuardConfig,
    "memory": MemoryConfig,
    "sample": SampleConfig,
}
"""The nested configs of TrainConfig: one settings node each."""


def without_prompts(values: dict[str, Any]) -> dict[str, Any]:
    """TrainConfig.to_dict(), of any version, without the samples' prompts."""
    sample = values.get("sample")
    if not isinstance(sample, dict):
        return {name: value for name, value in values.items() if name != "sample"}
    return {**values, "sample": {name: value for name, value in sample.items() if name not in PROMPTS}}


def _build(config_class: type[T], values: dict[str, Any]) -> T:
    if not isinstance(values, dict):
        raise KilnError(
            f"A table of settings is {shortened(repr(values))}; write name = value below its head."
        )
    known = {f.name for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise KilnError(
            f"Unknown setting {shortened(repr(unknown[0]))}; known here are {', '.join(sorted(known))}."
        )
    return config_class(**values)
