"""A run as two files that start it again without a graph: run.toml and, beside it, dataset.json.

Every run of the training node leaves them in its folder; `python headless.py train run.toml` reads them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import THEMES, TrainConfig
from ..dataset.encoded import EncodedDataset, EncodedItem
from ..dataset.places import AS_THEY_ARE, Places
from ..errors import KilnError
from ..parsers import parse_json, parse_toml
from ..safefile import write_text

NAME = "run.toml"

WRITTEN_BEFORE_SIZES = frozenset({"timestep_sampling", "shift", "noise_offset", "regularisation_weight"})
"""Settings in the run files of versions that told SDXL 768 x 768 and had no setting for it."""


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """What headless training needs to know."""

    model: dict[str, str]
    """How the model is loaded: "loader" (a node of the host), "file" (as that node names it) and the loader's other
    settings; "fingerprint" to tell that it is the same. "loader" is empty where the graph's model came another way."""
    text_encoder: dict[str, str] = field(default_factory=dict)
    """The same of the text encoder, where it is trained too: "loader", its settings, "fingerprint"."""
    dataset: str = "dataset.json"  # relative to the file's folder
    output: str = "lora.safetensors"  # relative to the file's folder
    resume: str = "new run"
    config: TrainConfig = field(default_factory=TrainConfig)


LEFT_OUT = (
    "The captions and names of the items are not in dataset.json, for the run kept no metadata (embed_metadata off, or "
    "--disable-metadata)."
)


def write_run_file(folder: Path, run: RunFile, dataset: EncodedDataset, places: Places = AS_THEY_ARE) -> Path:
    """Write both files; returns run.toml's path. Of a run with embed_metadata off they hold no prompt, caption, name or
    trigger word.

    Args:
        places: by which the encoded files are named.

    Raises:
        KilnError: writing failed.
    """
    words = ("trigger_word", "class_word", "slider") if run.config.embed_metadata else ()
    items = dataset.items if words else [item.without_words() for item in dataset.items]
    listed = {
        "items": [_at_home(item, places).to_dict(places.stored) for item in items],
        "fingerprint": dataset.fingerprint,
        **{name: getattr(dataset, name) for name in words},
        "text_encoder": dataset.text_encoder,
        "prompt_syntax": dataset.prompt_syntax,
        **({} if words else {"left_out": True}),
    }
    write_text(folder / run.dataset, json.dumps(listed, indent=1))
    values = run.config.to_record()
    tables = {f"train.{name}": values.pop(name) for name in THEMES}
    top = {"dataset": run.dataset, "output": run.output, "resume": run.resume}
    lines = ["# python headless.py train run.toml", *_pairs(top)]
    text = {"text_encoder": run.text_encoder} if run.text_encoder else {}
    for name, table in {"model": run.model, **text, "train": values, **tables}.items():
        lines += ["", f"[{name}]", *_pairs(table)]
    write_text(folder / NAME, "\n".join(lines) + "\n")
    return folder / NAME


def read_run_file(path: Path) -> RunFile:
    """The inverse.

    Raises:
        KilnError: it is not there, no TOML, or names what is not known.
    """
    try:
        values = parse_toml(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise KilnError(
            f"The run file {path} cannot be read ({error}); export it again or mend it."
        ) from error
    known = {"model", "text_encoder", "train", "dataset", "output", "resume"}
    unknown = sorted(set(values) - known)
    if unknown or "model" not in values:
        raise KilnError(
            f"The run file {path.name} {'holds ' + repr(unknown[0]) if unknown else 'has no [model]'}; known are "
            f"{', '.join(sorted(known))}."
        )
    train = values.pop("train", {})
    loaded = [values["model"], values.get("text_encoder", {})]
    others = {name: value for name, value in values.items() if name not in ("model", "text_encoder")}
    tables, texts = (*loaded, train), [t for each in (*loaded, others) for t in _values(each)]
    if not all(isinstance(t, dict) for t in tables) or not all(isinstance(t, str) for t in texts):
        raise KilnError(
            f"The run file {path.name} is not as a run writes it: [model] and [text_encoder] hold texts, [train] "
            "settings, and dataset, output and resume are texts; export it again or mend it."
        )
    objective = train.get("objective", {})
    if (
        isinstance(objective, dict) and objective.keys() >= WRITTEN_BEFORE_SIZES
    ):  # every setting there was, written out by a run
        objective.setdefault("size_conditioning", "768")
    config = TrainConfig.from_dict(train)
    return RunFile(**values, config=config)


def _at_home(item: EncodedItem, places: Places) -> EncodedItem:
    """The item; a picture outside the host's folders, which is only to be shown, keeps its name alone."""
    if item.source is None or not places.named or places.is_inside(item.source):
        return item
    return replace(item, source=Path(item.source.name))


def read_dataset(path: Path, places: Places = AS_THEY_ARE) -> EncodedDataset:
    """The items that write_run_file listed.

    Raises:
        KilnError: the file or an item's file is not there, or the list is malformed.
    """
    dataset = read_listed_items(path, places)
    try:
        gone = next((f for item in dataset.items for f in item.files if not f.is_file()), None)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if gone is not None:
        raise KilnError(f"The encoded file {gone} of {path.name} is gone; run the Encode Dataset node again.")
    return dataset


def read_listed_items(path: Path, places: Places = AS_THEY_ARE) -> EncodedDataset:
    """The same without looking for the items' files. Where words were left out, its remark says so.

    Raises:
        KilnError: the file is not there, or the list is malformed.
    """
    try:
        listed = parse_json(path.read_text("utf-8"))
        items = tuple(EncodedItem.from_dict(item, places.found) for item in listed["items"])
        # Files of earlier versions have none of these
        names = ("trigger_word", "class_word", "slider", "text_encoder")
        trigger_word, class_word, slider, text_encoder = (str(listed.get(name, "")) for name in names)
        prompt_syntax = bool(listed.get("prompt_syntax", False))
        remarks = (LEFT_OUT,) if listed.get("left_out") else ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    return EncodedDataset(
        items,
        trigger_word=trigger_word,
        class_word=class_word,
        slider=slider,
        text_encoder=text_encoder,
        prompt_syntax=prompt_syntax,
        remarks=remarks,
    )


def _unreadable(path: Path, error: Exception) -> KilnError:
    return KilnError(f"The dataset file {path} cannot be read ({error}); export the run again.")


def _values(table: Any) -> list[Any]:
    return list(table.values()) if isinstance(table, dict) else []


def _pairs(table: dict[str, Any]) -> list[str]:
    return [f"{name} = {_literal(value)}" for name, value in table.items()]


def _literal(value: Any) -> str:
    """TOML's spelling: JSON's, as long as a float shows that it is one."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # JSON would write an emoji as two escapes: no TOML
