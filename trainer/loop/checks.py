"""Settings written out for the model; checks that model, dataset and settings go together, and that a run can be
resumed with them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..adapter.peft_config import target_pattern
from ..adapter.protocol import TEXT_ENCODER, split_state_key
from ..conditioning import ItemConditioning, equal
from ..config import AdapterConfig, TrainConfig
from ..dataset.encoded import NOISE_MASK, EncodedDataset, EncodedItem, entry_names, load_text
from ..denoiser import Denoiser
from ..errors import KilnError
from ..noise_defaults import resolve
from ..runs.checkpoint import read_adapter_keys, read_state
from . import objective

log = logging.getLogger(__name__)

MOST_NAMES = 6  # of items in one sentence

GIVEN = {
    "concat_latent_image": "a first frame or a control clip",
    "clip_vision_output": "the first frame as CLIP sees it",
    "reference_latents": "control pictures",
    "vace_frames": "a control clip for VACE",
    "guiding_frame_index": "a first frame in place",
}
"""Entries of a conditioning that are made of pixels, and what they are."""


def resolve_auto(config: TrainConfig, denoiser: Denoiser, resume_from: Path | None) -> TrainConfig:
    """The settings with every auto replaced by what it means for this model, or by what it meant in the checkpoint
    that the run goes on from.

    Raises:
        KilnError: the checkpoint cannot be read.
    """
    resumed = None if resume_from is None else read_state(resume_from).config["objective"]
    return replace(config, objective=resolve(config.objective, denoiser, resumed))


def same_layers(adapter: AdapterConfig, resume_from: Path | None) -> AdapterConfig:
    """`layers_of` the model."""
    return layers_of(adapter, resume_from)


def layers_of(adapter: AdapterConfig, resume_from: Path | None, prefix: str = "") -> AdapterConfig:
    """The settings that choose exactly the layers of the checkpoint that a run goes on from, where target_modules is
    empty: which layers that means for a family may have changed since.

    Args:
        adapter: settings as the user made them.
        resume_from: the checkpoint, or None.
        prefix: TEXT_ENCODER for the text encoder's.

    Raises:
        KilnError: the checkpoint cannot be read.
    """
    if resume_from is None or adapter.target_modules.strip():
        return adapter
    found = {split_state_key(key)[0] for key in read_adapter_keys(resume_from)}
    own = {name for name in found if name.startswith(TEXT_ENCODER) == bool(prefix)}
    layers = sorted(name.removeprefix(prefix) for name in own)
    return replace(adapter, target_modules=target_pattern(layers), exclude_modules="")


def check_compatible(
    denoiser: Denoiser, dataset: EncodedDataset, config: TrainConfig, processes: int
) -> None:
    """Raise KilnError when model, dataset, settings and number of processes do not go together."""
    objective.check_objective(config.objective, denoiser.prediction)
    if dataset.channels != denoiser.latent_channels:
        raise KilnError(
            f"The encoded latents have {dataset.channels} channels and this model needs {denoiser.latent_channels}; "
            "encode the dataset with the VAE that belongs to the model."
        )
    if all(i.role == "validation" for i in dataset.items):
        raise KilnError(
            f"All {len(dataset.items)} items are held out for validation; connect items to train on."
        )
    if any(i.slider_ends for i in dataset.items):
        _check_slider(config)
    if config.optimizer.update_in_backward and preserves(dataset, config):
        raise KilnError(
            "update_in_backward takes one backward a step, and class_word on Caption Template asks for a second; "
            "switch one of them off."
        )
    if config.optimizer.update_in_backward and processes > 1:
        raise KilnError("update_in_backward is for one process; switch it off to train with several.")


def _check_slider(config: TrainConfig) -> None:
    """Raise KilnError when a slider cannot be trained with these settings."""
    if config.adapter.kind != "lora" or config.adapter.init == "pissa":
        what = f"kind is {config.adapter.kind}" if config.adapter.kind != "lora" else "init is pissa"
        raise KilnError(
            f"A slider is trained at strength 1 and -1, which is for the kind lora without pissa, and {what}; set it "
            "back on Adapter Settings."
        )
    if config.optimizer.update_in_backward:
        raise KilnError(
            "update_in_backward takes one backward a step, and a slider has one for each of its ends; switch it off."
        )


def preserves(dataset: EncodedDataset, config: TrainConfig) -> bool:
    """Whether differential output preservation is part of the run's loss."""
    return bool(config.objective.preservation_weight) and any(i.class_texts for i in dataset.items)


def check_given(denoiser: Denoiser, items: Sequence[EncodedItem]) -> None:
    """Raise KilnError when an item gives the model what it makes no use of, or one of an image-to-video model has no
    image.

    What the model does with a conditioning is asked of the model, for one item of each kind. Inside its session.
    """
    names = functools.cache(entry_names)
    if denoiser.needs_start_image:
        entry = "concat_latent_image"
        without = [i for i in items if not any(entry in names(p) for p in (*i.guides[:1], i.text_path))]
        if without:
            raise KilnError(
                f"This model is always given an image beside the noise, as for image to video, and {len(without)} of "
                f"{len(items)} items have none ({_names(without)}); set first_frame on Encode Dataset, load control "
                "clips for a control model, or train on the text-to-video model."
            )
    kinds: dict[frozenset[str], list[EncodedItem]] = {}
    for item in items:
        if item.guides:
            kinds.setdefault(names(item.guides[0]), []).append(item)
    for alike in kinds.values():
        _check_used(denoiser, alike, len(items))


def _check_used(denoiser: Denoiser, alike: Sequence[EncodedItem], of: int) -> None:
    """alike: items that give entries of the same names. of: how many items there are."""
    item = alike[0]
    given = load_text(item.guides[0])
    whole = {**load_text(item.text_path), **given}
    latents = torch.zeros((1, *item.shape), device=denoiser.device)
    if whole.pop(NOISE_MASK, None) is not None and not denoiser.takes_given_parts:
        raise KilnError(
            f"{len(alike)} of {of} items give the first frame within the latent ({_names(alike)}), and this model "
            "takes none there; connect the VAE of this model to Encode Dataset, or set first_frame to none."
        )

    def model_gets(entry: ItemConditioning) -> object:
        (batch,) = denoiser.batch_conditioning([entry], latents)
        return batch.conditioning

    asked = given.keys() & GIVEN.keys()
    used = model_gets(whole) if asked else None
    for name in sorted(asked):
        if equal(used, model_gets({k: v for k, v in whole.items() if k != name})):
            raise KilnError(
                f"{len(alike)} of {of} items give the model {GIVEN[name]} ({_names(alike)}), and this model makes no "
                f"use of {name}; train on a model that does, or encode the dataset without."
            )


def _names(items: Sequence[EncodedItem]) -> str:
    return ", ".join(i.name for i in items[:MOST_NAMES]) + (", ..." if len(items) > MOST_NAMES else "")


def untried_device(device: torch.device) -> str:
    """A sentence where training has never been run on a device of that kind; "" on a CPU, and on NVIDIA's and AMD's
    cards, whose path is the simulated one."""
    if device.type in ("cpu", "cuda"):
        return ""
    return (
        f"Training has never been run on a device of the kind {device.type}; look at the first samples before you "
        "rely on it, and report what fails."
    )


def check_resumable(
    path: Path, dataset: EncodedDataset, base_model: str, config: TrainConfig, processes: int
) -> None:
    """Raise KilnError when the run of checkpoint `path` cannot go on with these."""
    state = read_state(path)
    for what, saved, now in (
        ("dataset", state.dataset, dataset.fingerprint),
        ("model", state.base_model, base_model),
    ):
        if saved != now:
            raise KilnError(
                f"The run cannot be resumed: its {what} is not the one connected now. Connect the same {what}, or "
                "start a new run."
            )
    for what, before, after in (
        ("kind of adapter", state.config["adapter"].get("kind", "lora"), config.adapter.kind),
        (
            "update_in_backward",
            str(state.config["optimizer"].get("update_in_backward", False)),
            str(config.optimizer.update_in_backward),
        ),
        ("number of processes", str(state.processes), str(processes)),
    ):
        if before != after:
            raise KilnError(
                f"The run cannot be resumed: its {what} is {before} and is {after} now. Set it back, or start a new "
                "run."
            )
    if state.step >= config.steps:
        log.warning(
            "The run has %d steps already and steps is %d: nothing is trained.", state.step, config.steps
        )
