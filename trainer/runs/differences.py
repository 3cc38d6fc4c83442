"""What is not as it was between a run on disk and what is connected now, in words, and whether going on is sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import AdapterConfig, TrainConfig
from ..dataset.encoded import EncodedItem
from ..errors import KilnError
from ..parsers import parse_json
from .checkpoint_list import read_summary

ITEMS = "dataset.json"  # in a run's folder; see runfile.py

# Settings that change neither what is learned nor what was: a run goes on with new ones. `steps` must be
# more than were done.
FREE = frozenset({"steps", "checkpoint_every", "keep_checkpoints", "embed_metadata"})
FREE_THEMES = frozenset({"sample", "memory"})
LEARNED_OF_MEMORY = "base_precision"  # the one memory setting that changes what is learned
SHAPE = (
    "kind",
    "rank",
    "alpha",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "conv_rank",
    "conv_alpha",
)


@dataclass(frozen=True)
class Difference:
    """One thing that differs: "its rank is 16 and is 8 now"."""

    text: str
    sound: bool  # whether a new run may begin from the checkpoint all the same


def differences(
    path: Path, dataset: str, base_model: str, adapter: AdapterConfig, items: Sequence[EncodedItem] = ()
) -> list[Difference]:
    """Why the run of a checkpoint cannot simply go on; empty when it can.

    Args:
        path: the checkpoint.
        dataset, base_model: fingerprints of what is connected.
        adapter: its shape must be the run's.
        items: of the dataset that is connected, so that what differs in it can be named, for which the run's list of
            its own is read.
    """
    state = read_summary(path)
    if state is None:
        return [Difference("its checkpoint cannot be read", False)]
    try:
        before = AdapterConfig(**state.adapter) if state.adapter else None
    except (TypeError, KilnError):
        before = None
    if before is None:
        return [Difference("its settings are of another version of LoRA Kiln", False)]
    found = [Difference(text, False) for text in _other_networks(state.base_model, base_model)]
    for name in SHAPE:
        was, now = getattr(before, name), getattr(adapter, name)
        if was != now:
            found.append(Difference(f"its {name} is {_shown(was)} and is {_shown(now)} now", False))
    if state.dataset != dataset:
        found.append(Difference(_dataset_difference(path.parent, items), True))
    return found


def _other_networks(before: str, now: str) -> list[str]:
    """Of fingerprints of the model and, behind a plus, of the text encoder that is trained too."""
    (model, _, text), (own_model, _, own_text) = before.partition("+"), now.partition("+")
    found = [] if model == own_model else ["its model is another one"]
    if text and not own_text:
        found.append("it trained the text encoder too, and no CLIP is connected")
    elif own_text and not text:
        found.append("it trained the model alone, and a CLIP is connected")
    elif text != own_text:
        found.append("its text encoder is another one")
    return found


def changed_settings(before: dict[str, Any], now: TrainConfig) -> list[str]:
    """The settings that would make it another run: ["seed is 1 and is 2 now", ...].

    Args:
        before: TrainConfig.to_dict() of the run, with every auto written out.
        now: the same.
    """
    old, new = TrainConfig.from_dict(before).to_dict(), now.to_dict()
    found = []
    for name, value in new.items():
        if isinstance(value, dict):
            pairs = [(key, old[name][key], value[key]) for key in value]
            if name in FREE_THEMES:
                pairs = [pair for pair in pairs if pair[0] == LEARNED_OF_MEMORY]
            if name == "objective":
                pairs = [pair for pair in pairs if pair[0] != "automatic"]  # which of them were auto
        else:
            pairs = [] if name in FREE else [(name, old[name], value)]
        found += [f"{key} is {_shown(a)} and is {_shown(b)} now" for key, a, b in pairs if a != b]
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def _dataset_difference(run_folder: Path, items: Sequence[EncodedItem]) -> str:
    before = _listed_items(run_folder) if items else []
    if not before:
        return "its dataset is another one"
    if len(before) != len(items):
        return f"its dataset has {len(before)} items and {len(items)} now"
    pairs = list(zip(before, items, strict=True))
    pictures = sum(_names(a.latents) != _names(b.latents) for a, b in pairs)
    captions = sum(_names(a.texts) != _names(b.texts) for a, b in pairs)
    if pictures:
        return f"{pictures} of its {len(pairs)} pictures, or their size, are others now"
    if captions:
        return f"{captions} of its {len(pairs)} captions are others now"
    return "the repeats, roles or weights of its dataset are others now"


def _listed_items(run_folder: Path) -> list[EncodedItem]:
    try:
        listed = parse_json((run_folder / ITEMS).read_text("utf-8"))["items"]
        return [EncodedItem.from_dict(item) for item in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _names(paths: Sequence[Path]) -> list[str]:
    return [p.name for p in paths]
