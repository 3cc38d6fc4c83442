"""Settings written for other trainers, or in the tuning guide's YAML, as ours.

Nothing is passed over in silence: of every key the report says what became of it. A key that is not known is reported
with the nearest known one; only a known setting whose value cannot be is an error.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from typing import Any

from ..errors import KilnError, shortened
from . import THEMES, SampleConfig, TrainConfig, field_info
from .foreign_settings import (
    ALIASES,
    CONVOLUTIONS,
    ELSEWHERE,
    EPOCHS,
    IN_SECTION,
    NAMES_A_MODEL,
    NO_SHIFT,
    NOT_NEEDED,
    RESOLUTIONS,
    SECTIONS,
    UNAVAILABLE,
    VALUES,
)
from .settings_text import Path, check_count, read_text

# Samples need the graph's text encoder and VAE, which only their node has; "every" and the like are other themes' here
IMPORTED = {theme: each for theme, each in THEMES.items() if each is not SampleConfig}
MOST_EPOCHS = 10_000  # of Train LoRA
NEAR, NEAR_IF_SHORT = 0.85, 0.75  # 0-1, of difflib; below it a known key is hardly what another one means
ARGUMENTS = re.compile(r"(?<!\w)(\w+)\s*=\s*(\([^()]*\)|\[[^\[\]]*\]|\S+)")


class NotUsed(Exception):
    """A key that changes nothing here; the message says why."""


@dataclass
class Imported:
    """What was understood."""

    config: TrainConfig
    themes: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # for the settings socket, only what was given
    prompt_template: str = ""
    epochs: int = 0  # length of the run; 0: by its steps
    report: list[str] = field(default_factory=list)  # a line for every key


def import_settings(text: str) -> Imported:
    """Read JSON, TOML, YAML or command-line options (sections are looked through).

    Raises:
        KilnError: it is none of these, or the value of a known setting is not possible.
    """
    entries = [each for entry in read_text(text) for each in _taken_apart(*entry)]
    check_count(len(entries))
    places = _places()
    result = Imported(TrainConfig())
    found: dict[str, Any] = {}
    without_ema = any(
        path[-1] in ("use_ema", "ema") and str(value).lower() in ("false", "off") for path, value in entries
    )
    without_preservation = any(
        path[-1] == "diff_output_preservation" and str(value).lower() in ("false", "off")
        for path, value in entries
    )
    types = [str(value).lower() for path, value in entries if path[-1] == "LoRA_type"]
    plain = bool(types) and not any("locon" in each for each in types)
    for path, value in entries:
        key = path[-1]
        if key == "prompt_template":
            result.prompt_template = str(value)
            result.report.append("prompt_template: used, on the output prompt_template")
            continue
        try:
            if key in EPOCHS and not any(section in SECTIONS for section in path[:-1]):
                result.epochs = _epochs(key, value, entries)
                result.report.append(f"{key}: used as epochs = {result.epochs}, on the output epochs")
                continue
            if key.startswith("diff_output_preservation") and without_preservation:
                raise NotUsed("it is off")
            name = _name_of(path, value, places)
            if name == "ema_decay" and without_ema:
                raise NotUsed("the moving average is switched off beside it")
            if name in CONVOLUTIONS and plain:
                raise NotUsed("a LoRA of that type leaves convolutions alone")
            if name == "bias":
                result.report.append("bias: used, a LoRA here never has one")
                continue
            percent = key == "lr_warmup" and _number(value) is not None  # kohya's GUI: of the steps
            converted = _convert(name, _translated(name, float(value) / 100 if percent else value))
        except NotUsed as reason:
            result.report.append(f"{key}: not used, {reason}")
            continue
        replaced = f", instead of {found[name]}" if name in found and found[name] != converted else ""
        found[name] = converted
        where = ", where a CLIP is connected to Train LoRA" if name == "text_encoder_learning_rate" else ""
        result.report.append(f"{key}: used as {name} = {converted}{replaced}{where}")
        for other, chosen, why in _consequences(key, value, name, converted, entries):
            if other not in found:
                found[other] = chosen
                result.report.append(f"{key}: also {other} = {chosen}, {why}")
    top = {name: value for name, value in found.items() if places[name] == ""}
    for name, value in found.items():
        if places[name]:
            result.themes.setdefault(places[name], {})[name] = value
    result.config = TrainConfig.from_dict({**top, **result.themes})
    return result


def _places() -> dict[str, str]:
    """Every setting's name -> its theme; "" for the run's own."""
    places = dict.fromkeys(field_info(TrainConfig), "")
    for theme, each in IMPORTED.items():
        places |= dict.fromkeys(field_info(each), theme)
    return places


def _taken_apart(path: Path, value: Any) -> list[tuple[Path, Any]]:
    """Values that hold several settings: betas, and arguments such as "weight_decay=0.01 betas=(0.9,0.99)"."""
    key = path[-1]
    if key in ("optimizer_args", "network_args") and value:
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        given = ARGUMENTS.findall(text)
        return [each for n, v in given for each in _taken_apart((*path, n), v.strip("'\","))]
    if key in ("betas", "adam_betas"):
        numbers = re.findall(r"[\d.e-]+", str(value))
        if len(numbers) >= 2:
            return [((*path[:-1], "beta1"), numbers[0]), ((*path[:-1], "beta2"), numbers[1])]
    return [(path, value)]


def _name_of(path: Path, value: Any, places: dict[str, str]) -> str:
    """Our setting that a key means.

    Raises:
        NotUsed: none, and why.
        KilnError: a value that cannot be had.
    """
    key, sections = path[-1], path[:-1]
    in_section = next((IN_SECTION[s, key] for s in reversed(sections) if (s, key) in IN_SECTION), None)
    if in_section:
        return in_section
    if key == "bias":
        if str(value).lower() != "none":
            raise KilnError(f"bias is {value!r}; a LoRA here has no bias, write none.")
        return key
    if value is None or value == "":
        raise NotUsed("it is empty")
    sizes = _sizes(value) if key in RESOLUTIONS and "sample" not in sections else []
    if sizes[1:]:
        more = ", ".join(sizes[1:])
        raise NotUsed(f"set resolution to {sizes[0]} and more_resolutions to {more} on Encode Dataset")
    if sizes:
        raise NotUsed(f"set resolution to {sizes[0]} on Encode Dataset")
    if key in NAMES_A_MODEL and re.search("i2v|flf2v", str(value), re.IGNORECASE):
        raise NotUsed(ELSEWHERE["i2v"])
    if key in ELSEWHERE:
        raise NotUsed("it is off" if _is_off(value) else ELSEWHERE[key])
    name = ALIASES.get(key, key)
    for section in sections:
        if section in SECTIONS and not (
            section == "save" and name in ("checkpoint_every", "keep_checkpoints")
        ):
            raise NotUsed(SECTIONS[section])
    if name == "level" and not _number(value):
        raise NotUsed("no blocks are streamed; Memory Settings at auto decides by what is free")
    if name == "steps" and _number(value) == 0:
        raise NotUsed("0 leaves it to the epochs")
    if name == "text_encoder_learning_rate" and _number(value) == 0:
        raise NotUsed("0 switches it off")
    if name == "embed_metadata":
        raise NotUsed("set it on the training node")
    if name == "rank" and (_number(value) or 0) > 1024:
        raise NotUsed("a rank beyond 1024 stands for whole matrices elsewhere; the default stays")
    if name == "lora_plus_ratio" and _number(value) == 0:
        raise NotUsed("0 switches it off")
    if name == "seed" and (_number(value) or 0) < 0:
        raise NotUsed("a negative seed stands for any")
    if name == "min_snr_gamma" and _number(value) == 0:
        raise NotUsed("0 switches it off")
    if key == "lr_warmup":
        return "warmup_ratio"
    if name in places:
        return name
    if key in NOT_NEEDED:
        raise NotUsed(NOT_NEEDED[key])
    if key in field_info(SampleConfig):
        raise NotUsed("set it on the Sample Settings node")
    if _is_off(value):
        raise NotUsed("it is off")
    known = sorted(
        {*places, *ALIASES, *NOT_NEEDED, *ELSEWHERE, *RESOLUTIONS, *EPOCHS, "bias", "prompt_template"}
    )
    near = difflib.get_close_matches(key[:60], known, n=1, cutoff=NEAR if len(key) > 5 else NEAR_IF_SHORT)
    raise NotUsed(f"it is not known; the nearest known one is {near[0]!r}" if near else "it is not known")


def _is_off(value: Any) -> bool:
    return not value or str(value).strip().lower() in ("false", "off", "none", "no", "0", "0.0")


def _sizes(value: Any) -> list[str]:
    """Sizes of training as numbers, each once: 512, "512,768", [512, 768], [[512, 512]] or [[512, 768]]."""
    found: list[int] = []
    for each in value if isinstance(value, list) else [value]:
        numbers = [int(n) for n in re.findall(r"\d+", str(each))]
        area = isinstance(each, list) and len(numbers) == 2  # a width and a height
        found += [round(math.sqrt(numbers[0] * numbers[1]))] if area else numbers
    return [str(size) for size in dict.fromkeys(found)]


def _epochs(key: str, value: Any, entries: list[tuple[Path, Any]]) -> int:
    """The length of the run in epochs, rounded up.

    Raises:
        NotUsed: another key says how long it is.
        KilnError: it is no such length.
    """
    if _is_off(value):
        raise NotUsed("0 leaves it to the steps")
    given = {path[-1] for path, each in entries if (_number(each) or 0) > 0}
    steps = sorted(name for name in given if ALIASES.get(name, name) == "steps")
    if steps and key != "max_train_epochs":
        raise NotUsed(f"{steps[0]} says how long the run is")
    if key != "max_train_epochs" and "max_train_epochs" in given:
        raise NotUsed("max_train_epochs says how long the run is")
    number = _number(value)
    if number is None or not 0 < number <= MOST_EPOCHS:
        raise KilnError(
            f"{key} is {shortened(repr(value))}; it must be a number of epochs from 1 to {MOST_EPOCHS}."
        )
    return math.ceil(number)


def _translated(name: str, value: Any) -> Any:
    """Their word for a choice in ours.

    Raises:
        NotUsed: it is known and not to be had here.
    """
    choices = VALUES.get(name, {})
    word = value.lower() if isinstance(value, str) else value
    if isinstance(word, str) and word.startswith("networks.lora_"):
        word = "lora"
    if not isinstance(word, (str, bool)) or word not in choices:
        return value
    if choices[word] is UNAVAILABLE:
        raise NotUsed(f"{value} is not to be had here; the default stays")
    return choices[word]


def _consequences(
    key: str, value: Any, name: str, converted: Any, entries: list[tuple[Path, Any]]
) -> list[tuple[str, Any, str]]:
    """Settings that follow from one: (setting, value, why)."""
    keys = {path[-1] for path, _ in entries}
    if name == "rank" and not keys & ALPHAS:
        if key == "network_dim":
            return [("alpha", 1.0, "as sd-scripts and musubi-tuner mean it where nothing is said")]
        if any(path[-2:] == ("adapter", "rank") for path, _ in entries):
            return [("alpha", float(converted), "as diffusion-pipe means it where nothing is said")]
    if name == "min_snr_gamma" and "weighting" not in keys:
        return [("weighting", "min_snr", "without which it does nothing")]
    no_shift = key in NO_SHIFT or str(value).lower() == "sigmoid"
    if name == "timestep_sampling" and converted != "auto" and no_shift and str(value).lower() != "shift":
        return [("shift", 1.0, "since none is said")] if not keys & SHIFTS else []
    return []


ALPHAS = {"alpha", *(key for key, name in ALIASES.items() if name == "alpha")}
SHIFTS = {"shift", *(key for key, name in ALIASES.items() if name == "shift")}


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _convert(name: str, value: Any) -> Any:
    """As our field wants it: YAML 1.1 reads 1e-4 as a text, and lists of names are one text here."""
    fields = {n: f for each in (TrainConfig, *IMPORTED.values()) for n, f in field_info(each).items()}
    default: Any = fields[name].default
    if name == "text_encoder_learning_rate" and isinstance(value, list) and value:
        value = value[0]  # sd-scripts: one for each text encoder
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if name == "level":  # a number of blocks to swap, or our own word
        return "stream blocks" if _number(value) is not None else value
    if fields[name].metadata["options"] is not None:
        return str(value).lower()
    if name in ("min_timestep", "max_timestep") and (_number(value) or 0) > 1:
        return float(value) / 1000  # others count from 0 to 1000
    try:
        if isinstance(default, bool):
            if str(value).lower() not in ("true", "false"):
                raise ValueError
            return str(value).lower() == "true"
        if isinstance(default, int) and float(value) != int(float(value)):
            raise ValueError
        return type(default)(float(value)) if isinstance(default, int) else type(default)(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise KilnError(
            f"{name} is {shortened(repr(value))}; it must be of the kind of {default!r} ({type(default).__name__})."
        ) from error


def as_settings(imported: Imported) -> dict[str, dict[str, Any]]:
    """For the settings socket: what was given, without what are widgets of the training node."""
    on_trainer = set(widget_values(imported))
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
        "epochs": imported.epochs,
        "seed": config.seed,
        "checkpoint_every": config.checkpoint_every,
        "keep_checkpoints": config.keep_checkpoints,
        "text_encoder_learning_rate": config.optimizer.text_encoder_learning_rate,
    }
