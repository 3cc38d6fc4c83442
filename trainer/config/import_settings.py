"""Settings written for other trainers, or in the tuning guide's YAML, as ours.

Nothing is passed over in silence: of every key the report says what became of it, and one that is not known is an error
that names the nearest known one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..errors import KilnError
from . import THEMES, SampleConfig, TrainConfig, field_info

# Other names -> ours
ALIASES = {
    **dict.fromkeys(("r", "lora_rank", "network_dim", "dim"), "rank"),
    **dict.fromkeys(("lora_alpha", "network_alpha"), "alpha"),
    **dict.fromkeys(("lora_dropout", "network_dropout"), "dropout"),
    **dict.fromkeys(("lr", "unet_lr"), "learning_rate"),
    **dict.fromkeys(("max_train_steps", "train_steps", "num_steps"), "steps"),
    **dict.fromkeys(("train_batch_size", "batch"), "batch_size"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulation_steps"), "gradient_accumulation"),
    **dict.fromkeys(("lr_warmup_steps", "num_warmup_steps"), "warmup_steps"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), "schedule"),
    **dict.fromkeys(("optimizer_type", "optim"), "optimizer"),
    **dict.fromkeys(("save_every_n_steps", "checkpointing_steps", "save_steps"), "checkpoint_every"),
    "warmup": "warmup_ratio",
    "conv_dim": "conv_rank",
    "conv_alpha": "conv_alpha",
    "use_rslora": "rank_stabilised",
    "snr_gamma": "min_snr_gamma",
}
SCHEDULES = {"cosine_with_warmup": "cosine", "constant_with_warmup": "constant"}
OPTIMIZERS = {"adamw8bit": "adamw_8bit", "adamw_8bit": "adamw_8bit", "adamw": "adamw"}
NOT_NEEDED = {
    "mixed_precision": "the model's own precision is used, the LoRA is trained in fp32",
    "resolution": "set it on the Encode Dataset node",
    "image_size": "set it on the Encode Dataset node",
    "model": "the model is the one that is connected",
    "pretrained_model_name_or_path": "the model is the one that is connected",
    "output_dir": "set the name on the Save LoRA node",
}
# Samples need the graph's text encoder and VAE, which only their node has; "every" and the like are other themes' here
IMPORTED = {theme: each for theme, each in THEMES.items() if each is not SampleConfig}


@dataclass
class Imported:
    """What was understood."""

    config: TrainConfig
    themes: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # for the settings socket, only what was given
    prompt_template: str = ""
    report: list[str] = field(default_factory=list)  # a line for every key


def import_settings(text: str) -> Imported:
    """Read YAML (nested sections are looked through).

    Raises:
        KilnError: it is no YAML mapping, a key is not known, or a value is out of range.
    """
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise KilnError(
            f"The settings are not valid YAML ({error}); paste the file's text as it is."
        ) from error
    if not isinstance(values, dict):
        raise KilnError("The settings hold no 'name: value' lines; paste the file's text as it is.")
    places = _places()
    result = Imported(TrainConfig())
    top: dict[str, Any] = {}
    for key, value in _flat(values):
        name = ALIASES.get(key, key)
        if key in NOT_NEEDED:
            result.report.append(f"{key}: not used, {NOT_NEEDED[key]}")
        elif key == "prompt_template":
            result.prompt_template = str(value)
            result.report.append("prompt_template: used, on the output prompt_template")
        elif key == "bias":
            if str(value).lower() != "none":
                raise KilnError(f"bias is {value!r}; a LoRA here has no bias, write none.")
            result.report.append("bias: used, a LoRA here never has one")
        elif name in places:
            theme, converted = places[name], _convert(name, value)
            (top if theme == "" else result.themes.setdefault(theme, {}))[name] = converted
            result.report.append(f"{key}: used as {name} = {converted}")
        elif key in field_info(SampleConfig):
            result.report.append(f"{key}: not used, set it on the Sample Settings node")
        else:
            known = sorted({*places, *ALIASES, *NOT_NEEDED, "bias", "prompt_template"})
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise KilnError(f"The setting {key!r} is not known; the nearest known one is {near[0]!r}.")
    result.config = TrainConfig.from_dict({**top, **result.themes})
    return result


def _places() -> dict[str, str]:
    """Every setting's name -> its theme; "" for the run's own."""
    places = dict.fromkeys(field_info(TrainConfig), "")
    for theme, each in IMPORTED.items():
        places |= dict.fromkeys(field_info(each), theme)
    return places


def _flat(values: dict[Any, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value) if isinstance(value, dict) else [(str(key), value)]
    return found


def _convert(name: str, value: Any) -> Any:
    """As our field wants it: YAML 1.1 reads 1e-4 as a text, and lists of names are one text here."""
    fields = {n: f for each in (TrainConfig, *IMPORTED.values()) for n, f in field_info(each).items()}
    default: Any = fields[name].default
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if name == "schedule":
        return SCHEDULES.get(str(value).lower(), str(value).lower())
    if name == "optimizer":
        return OPTIMIZERS.get(str(value).lower(), str(value))
    try:
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ValueError
            return value
        if isinstance(default, int) and float(value) != int(float(value)):
            raise ValueError
        return type(default)(float(value)) if isinstance(default, int) else type(default)(value)
    except (TypeError, ValueError) as error:
        raise KilnError(
            f"{name} is {value!r}; it must be of the kind of {default!r} ({type(default).__name__})."
        ) from error


def as_settings(imported: Imported) -> dict[str, dict[str, Any]]:
    """For the settings socket: what was given, without what are widgets of the training node."""
    on_trainer = {"rank", "alpha", "learning_rate"}
    themes = {
        theme: {n: v for n, v in values.items() if n not in on_trainer}
        for theme, values in imported.themes.items()
    }
    return {theme: values for theme, values in themes.items() if values}


def widget_values(imported: Imported) -> dict[str, Any]:
    """What belongs on the training node's widgets: given values, or our defaults."""
    config = imported.config
    return {
        "steps": config.steps,
        "learning_rate": config.optimizer.learning_rate,
        "rank": config.adapter.rank,
        "alpha": config.adapter.alpha,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
