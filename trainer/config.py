"""Every setting of a training run: frozen dataclasses with defaults, units and ranges.

The field is the single source: its metadata gives the range that the constructor checks, and the default, range
and tooltip that the settings nodes show. Read it back with `field_info`. A preset is a plain table of the values
that it puts on the widgets; nothing is changed in secret after that.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

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
    multiline: bool = False,
) -> Any:
    """A dataclass field that knows its own range and explanation.

    Args:
        default: value when nothing is chosen.
        doc: tooltip; what it does, unit, useful range.
        minimum, maximum: inclusive range for numbers.
        step: widget increment for floats.
        options: allowed values for strings.
        multiline: a string of several lines.
    """
    info = {"doc": doc, "minimum": minimum, "maximum": maximum, "step": step, "options": options}
    info["multiline"] = multiline
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
    exclude_modules: str = setting(
        "",
        "Layers to leave out of those chosen: a regular expression that is searched for in the full layer name, such "
        "as cross_attn. Empty leaves none out.",
    )
    kind: str = setting(
        "lora",
        "Form of the update. lora: the usual one and the fastest. dora: with a trained length for every output. loha, "
        "lokr: products of small matrices, smaller files. oft: rotates the outputs in blocks of about rank.",
        options=("lora", "dora", "loha", "lokr", "oft"),
    )
    rank_stabilised: bool = setting(
        False,
        "Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA), so that large ranks learn as fast as small "
        "ones. For lora and dora.",
    )
    init: str = setting(
        "default",
        "Start values. default: the update starts at zero. orthogonal: both matrices orthogonal, also zero in product. "
        "pissa: the layer's largest directions, learns faster; the file has twice the rank. For lora.",
        options=("default", "orthogonal", "pissa"),
    )
    rank_pattern: str = setting(
        "",
        "Other ranks for some layers, as expression=rank or expression=rank:alpha, comma separated; the expression is "
        "searched for in the full layer name and the first that is found counts. Example: ffn=16:8, self_attn=64.",
    )
    rank_dropout: float = setting(
        0.0,
        "Share of the ranks (lora) or outputs (loha, lokr) that is switched off at each step; 0.1 is usual.",
        minimum=0.0,
        maximum=0.9,
        step=0.01,
    )
    max_weight_norm: float = setting(
        0.0,
        "A layer whose update has a larger Frobenius norm is scaled down to it after every step; 1 is usual, 0 "
        "switches it off. For lora.",
        minimum=0.0,
        maximum=1000.0,
        step=0.1,
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the adapter's weights move: the optimizer, its schedule and its limits."""

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
        options=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    warmup_ratio: float = setting(
        0.05,
        "Share of all steps over which the learning rate rises from zero, 0.01-0.1 is usual.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    warmup_steps: int = setting(
        0, "Steps of the warmup; 0 leaves it to warmup_ratio.", minimum=0, maximum=1_000_000
    )
    warmup_start: float = setting(
        0.0,
        "Learning rate at which the warmup starts, as a share 0-1 of the peak. A progressive start: 0.1 here and a "
        "warmup_ratio of 0.3.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    schedule_cycles: int = setting(1, "Number of waves of cosine_with_restarts.", minimum=1, maximum=1000)
    schedule_power: float = setting(
        1.0,
        "Exponent of polynomial; 1 is linear, 2 falls faster at first.",
        minimum=0.01,
        maximum=10.0,
        step=0.1,
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
    optimizer: str = setting(
        "adamw",
        "adamw, adafactor (torch), adamw_8bit (needs the package bitsandbytes), lion, prodigy, schedule_free_adamw "
        "or any class name of the package pytorch_optimizer (needs it). prodigy wants a learning rate of 1, lion a "
        "third of AdamW's, schedule_free_adamw a constant schedule.",
    )
    lora_plus_ratio: float = setting(
        1.0,
        "Learning rate of the B matrices over that of the A matrices (LoRA+); 1 treats them alike, 4-16 is usual. For "
        "lora and dora.",
        minimum=0.01,
        maximum=100.0,
        step=0.5,
    )
    ema_decay: float = setting(
        0.0,
        "Decay of a running mean of the weights (EMA), which is then what is validated and saved; 0.99-0.999 is "
        "usual, 0 switches it off.",
        minimum=0.0,
        maximum=0.99999,
        step=0.001,
    )
    beta1: float = setting(0.9, "Decay of AdamW's running mean.", minimum=0.0, maximum=0.9999, step=0.001)
    beta2: float = setting(
        0.999, "Decay of AdamW's running variance.", minimum=0.0, maximum=0.99999, step=0.001
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """At which noise levels the model is trained, and how its errors count."""

    timestep_sampling: str = setting(
        "logit_normal",
        "How noise levels are drawn: logit_normal favours the middle, uniform takes all alike, mode is SD3's flatter "
        "curve with raised ends.",
        options=("logit_normal", "uniform", "mode"),
    )
    logit_mean: float = setting(
        0.0, "Centre of logit_normal; above 0 means noisier.", minimum=-5.0, maximum=5.0, step=0.1
    )
    logit_std: float = setting(
        1.0, "Width of logit_normal; larger is nearer to uniform.", minimum=0.01, maximum=10.0, step=0.1
    )
    mode_scale: float = setting(
        1.29, "Strength of mode; 0 is uniform.", minimum=-1.0, maximum=1.75, step=0.01
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

    loss: str = setting(
        "l2",
        "Measure of error: l2 (squared), l1 (absolute), huber (squared below huber_delta, absolute above; bears "
        "outliers).",
        options=("l2", "l1", "huber"),
    )
    huber_delta: float = setting(
        0.1, "Where huber turns from squared to absolute.", minimum=0.0001, maximum=10.0, step=0.01
    )
    weighting: str = setting(
        "none",
        "How much each noise level counts. min_snr is for models that predict noise or v; sigma_sqrt and cosmap "
        "(SD3) are for flow matching.",
        options=("none", "min_snr", "sigma_sqrt", "cosmap"),
    )
    min_snr_gamma: float = setting(
        5.0, "Ceiling of the signal-to-noise ratio in min_snr.", minimum=0.1, maximum=100.0, step=0.5
    )
    noise_offset: float = setting(
        0.0,
        "Adds a constant of this size to each channel of the noise, for darker and brighter images; 0.05 is usual, 0 "
        "switches it off. For models that predict noise or v.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    regularisation_weight: float = setting(
        1.0,
        "Factor on the loss of regularisation items (prior preservation).",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min_timestep >= self.max_timestep:
            raise KilnError(
                f"min_timestep is {self.min_timestep} and max_timestep {self.max_timestep}; "
                "the minimum must be smaller."
            )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the run is measured on held-out items, whose role is validation, and what follows from it."""

    every: int = setting(
        100,
        "Steps between measurements, 0 for none. Always the same noise at the same noise levels, so the curve is "
        "smooth.",
        minimum=0,
        maximum=1_000_000,
    )
    levels: int = setting(
        4,
        "Noise levels measured per item: the middles of as many equal shares of what training draws. One forward pass "
        "each.",
        minimum=1,
        maximum=32,
    )
    patience: int = setting(
        0,
        "Stop early when this many measurements in a row were no better than the best; 0 never stops early.",
        minimum=0,
        maximum=1000,
    )
    result: str = setting(
        "last",
        "Which weights the run hands on: those of the last step, or those of the best measurement.",
        options=("last", "best"),
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when a step goes wrong."""

    max_bad_steps: int = setting(
        3,
        "Steps in a row whose loss or gradient is not finite that are skipped; one more is too many.",
        minimum=0,
        maximum=1000,
    )
    on_divergence: str = setting(
        "roll_back",
        "After too many bad steps: roll_back to the last checkpoint and halve the learning rate, or stop.",
        options=("roll_back", "stop"),
    )
    max_rollbacks: int = setting(
        3, "Roll-backs after which the run stops all the same.", minimum=1, maximum=100
    )
    spike_factor: float = setting(
        0.0,
        "A step whose loss is more than this many times the recent median pulls no harder than one at that limit; 5 is "
        "usual, 0 switches it off.",
        minimum=0.0,
        maximum=1000.0,
        step=0.5,
    )
    retry_out_of_memory: bool = setting(
        True,
        "When the device's memory runs out, try the step again with activation checkpointing, then in smaller parts "
        "with the same effective batch.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)


STREAMED = ("stream blocks", "stream from file")
"""Memory levels at which blocks pass through the device."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Where the frozen model is while the LoRA is trained. All levels learn the same."""

    level: str = setting(
        "auto",
        "How much of the device's memory is used, from most to least. resident: all weights and activations. "
        "checkpoint activations: each block is computed again in backward, a third to a half slower. stream blocks: "
        "also keeps the blocks in CPU memory and brings in two at once. stream from file: reads them from its "
        "file instead, and the model's RAM is free. auto: the first that fits.",
        options=("auto", "resident", "checkpoint activations", "stream blocks", "stream from file"),
    )
    base_precision: str = setting(
        "as it is",
        "fp8 holds the weights of the trained layers in 8 bits, half of bf16; the LoRA then learns on slightly rounded "
        "weights. Not with stream from file.",
        options=("as it is", "fp8"),
    )
    offload_block_inputs: bool = setting(
        False,
        "Keep the inputs of the blocks in CPU memory until backward: for long videos. auto switches it on where it is "
        "needed; no effect when resident.",
    )
    compile_blocks: bool = setting(
        False,
        "Compile the blocks with torch.compile: the first step takes a minute or more, the others are faster on a GPU. "
        "For the kind lora without dropout, and not while blocks are streamed.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.compile_blocks and self.level in STREAMED:
            raise KilnError(
                f"compile_blocks does not go with the level {self.level}; choose resident or checkpoint activations."
            )
        if self.level == "stream from file" and self.base_precision == "fp8":
            raise KilnError(
                "base_precision fp8 does not go with stream from file, which reads the weights as the file has them; "
                "choose stream blocks or as it is."
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What is drawn during the run, to see what the LoRA has learned; the LoRA is the same with and without."""

    prompts: str = setting(
        "",
        "What to draw, one prompt per line; use the trigger word of your captions.",
        multiline=True,
    )
    negative_prompt: str = setting("", "What to keep out of all of them; may be empty.", multiline=True)
    every: int = setting(
        250, "Steps between samples, 0 for only when asked and at the end.", minimum=0, maximum=1_000_000
    )
    at_start: bool = setting(True, "Also before the first step: the model without the LoRA, to compare with.")
    width: int = setting(512, "Width of the samples in pixels.", minimum=16, maximum=8192, step=16)
    height: int = setting(512, "Height of the samples in pixels.", minimum=16, maximum=8192, step=16)
    length: int = setting(
        1,
        "Frames, 1 for a still. Wan takes 4n+1, such as 33. Of a video the middle frame is shown, and all in motion.",
        minimum=1,
        maximum=1025,
        step=4,
    )
    fps: float = setting(
        16.0, "Frames per second of the moving preview; Wan makes 16.", minimum=1.0, maximum=120.0, step=1.0
    )
    sampler_steps: int = setting(20, "Steps of the sampler for each picture.", minimum=1, maximum=1000)
    cfg: float = setting(
        6.0,
        "Classifier-free guidance; 6 suits Wan, 1 is twice as fast and right for distilled models.",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
    )
    sampler_name: str = setting("uni_pc", "The host's sampler, as in KSampler.")
    scheduler: str = setting("simple", "The host's scheduler, as in KSampler.")
    sample_seed: int = setting(
        0,
        "Seed of each prompt's first picture, always the same, so that pictures of all steps can be compared.",
        minimum=0,
        maximum=0xFFFFFFFFFFFFFFFF,
    )
    pictures: int = setting(
        1, "Pictures per prompt; the seed goes up by 1 from one to the next.", minimum=1, maximum=16
    )
    strength: float = setting(
        1.0, "Strength at which the LoRA is on.", minimum=-10.0, maximum=10.0, step=0.05
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    def each(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every picture, in the order in which they are drawn."""
        lines = [line.strip() for line in self.prompts.splitlines() if line.strip()]
        return [(line, (self.sample_seed + i) % 2**64) for line in lines for i in range(self.pictures)]


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


def _build(config_class: type[T], values: dict[str, Any]) -> T:
    known = {f.name for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise KilnError(f"Unknown setting {unknown[0]!r}; known here are {', '.join(sorted(known))}.")
    return config_class(**values)


def _read_presets() -> dict[str, dict[str, float]]:
    """The recipes in presets/, by name: what each puts on the visible widgets of the training node."""
    found = {}
    for name in ("quick_trial", "standard", "character", "style"):
        file = Path(__file__).with_name("presets") / f"{name}.yaml"
        values = yaml.safe_load(file.read_text("utf-8"))
        found[values.pop("name")] = values
    return found


PRESETS = _read_presets()
