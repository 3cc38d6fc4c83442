"""A LoRA file as the beginning of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.lora
import torch
from torch import Tensor
from torch.nn.functional import pad

from ....trainer.adapter.protocol import TEXT_ENCODER as TEXT_PREFIX
from ....trainer.config import AdapterConfig
from ....trainer.errors import KilnError
from ....trainer.lora_files.formulas import LayerTensors, group_by_layer, unknown_keys
from ....trainer.lora_files.keys import PREFIX, TEXT_ENCODER, model_of
from ....trainer.rng import generator
from .. import paths
from .lora import made_for, match_layers, read_lora


def start_state(
    model: Any, clip: Any | None, name: str, config: AdapterConfig
) -> tuple[dict[str, Tensor], str]:
    """A LoRA file as the state of a fresh adapter, so that training begins where the file is.

    Whatever key format the host can read can be started from. A file of a smaller rank is filled up with fresh rows
    that do nothing yet.

    Args:
        model: a MODEL.
        clip: the CLIP, where it is trained too.
        name: as the host lists the file.
        config: of the adapter that is to be trained.

    Returns:
        The state, and a sentence on what of the file fits nothing and is left out, or an empty one.

    Raises:
        KilnError: the file is no plain LoRA, is for another size or kind of model, has a larger rank, or holds layers
            that are not trained.
    """
    # peft: not at the host's start
    from ....trainer.adapter.targets import choose_convolutions, choose_targets, layer_shape

    if config.kind != "lora" or config.init != "default":
        raise KilnError(
            f"start_from needs an adapter of the kind lora with init default, and these are {config.kind} and "
            f"{config.init}; change them or start fresh."
        )
    keys: dict[str, Any] = comfy.lora.model_lora_keys_unet(model.model, {})
    lora = read_lora(paths.lora_path(name))
    found, left = match_layers(lora, group_by_layer(lora), keys, model)
    loaded = {key: patch for patches in found.values() for key, patch in patches.items()}
    if clip is not None and left:
        of_text, left = _of_text_encoder(clip, lora, left)
        loaded |= of_text
    notice = _left_out(name, model, lora, len(found), [*left, *unknown_keys(lora)])
    network = model.model.diffusion_model
    targets = {
        *choose_targets(network, config.target_modules, config.exclude_modules),
        *choose_convolutions(network, config),
        *([] if clip is None else (TEXT_PREFIX + n for n in choose_targets(clip.cond_stage_model, ""))),
    }
    state: dict[str, Tensor] = {}
    for key, patch in loaded.items():
        layer = str(key).removeprefix(PREFIX).removesuffix(".weight")
        up, down, alpha = _plain_lora(name, layer, patch)
        if layer not in targets:
            raise KilnError(
                f"start_from {name!r} holds the layer {layer}, which this run does not train; leave target_modules "
                "empty or name it there."
            )
        rank = down.shape[0]
        shape = layer_shape(layer.removeprefix(TEXT_PREFIX), config, down.shape[2:])
        if rank > shape.rank:
            raise KilnError(
                f"start_from {name!r} has rank {rank} and this run {shape.rank}; set rank to {rank} or more."
            )
        factor = (1.0 if alpha is None else alpha / rank) / shape.scale(config)
        state |= _filled_up(layer, up.float() * factor, down.float(), shape.rank, len(state) + 1)
    if not state:
        raise KilnError(
            f"start_from {name!r} holds no layer of this model ({type(model.model).__name__}); choose a LoRA that was "
            "trained on this kind of model."
        )
    return state, notice


def _of_text_encoder(
    clip: Any, lora: Mapping[str, Tensor], left: Mapping[str, LayerTensors]
) -> tuple[dict[str, Any], dict[str, LayerTensors]]:
    """Patches of the text encoder's layers by their names with our prefix, and the layers that fit nothing."""
    keys: dict[str, Any] = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    found, left_out = match_layers(lora, left, keys)
    loaded = {key: patch for patches in found.values() for key, patch in patches.items()}
    return {TEXT_PREFIX + str(key): patch for key, patch in loaded.items()}, left_out


def _left_out(name: str, model: Any, lora: Mapping[str, Tensor], fitting: int, left: Sequence[str]) -> str:
    """A sentence on what fits nothing. Raises KilnError where that is more than what fits."""
    if not left:
        return ""
    of_model = [layer for layer in left if model_of([layer]) != TEXT_ENCODER]
    if fitting and len(of_model) > fitting:
        raise KilnError(
            f"start_from {name!r} is for {made_for(lora)}: {fitting} of its layers fit this model "
            f"({type(model.model).__name__}) and {len(of_model)} fit nothing, such as {of_model[0]}; choose a LoRA "
            "that was trained on this kind of model."
        )
    return f"start_from {name!r}: {len(left)} layers fit nothing and are left out, such as {left[0]}."


def _filled_up(layer: str, up: Tensor, down: Tensor, rank: int, index: int) -> dict[str, Tensor]:
    """The matrices of a layer at a larger rank, with fresh rows in A and zeros in B; index: for what is drawn."""
    more = rank - len(down)
    fresh = torch.empty(rank, *down.shape[1:])
    torch.nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=generator(0, "start", index))
    fresh[: len(down)] = down
    return {
        f"{layer}.lora_B.weight": pad(up, (*[0, 0] * (up.ndim - 2), 0, more)),
        f"{layer}.lora_A.weight": fresh,
    }


def _plain_lora(name: str, layer: str, patch: Any) -> tuple[Tensor, Tensor, float | None]:
    """(up (out, r[, 1, 1]), down (r, in[, k, k]), alpha) of one loaded layer."""
    weights: Any = getattr(patch, "weights", None)
    if getattr(patch, "name", "") != "lora" or weights[3] is not None or weights[4] is not None:
        raise KilnError(
            f"start_from {name!r} holds {layer} in another form than a plain LoRA; choose a plain LoRA."
        )
    return weights[0], weights[1], weights[2]
