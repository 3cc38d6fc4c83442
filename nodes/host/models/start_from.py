"""A LoRA file as the beginning of a run."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.lora_convert
import torch
from torch import Tensor
from torch.nn.functional import pad

from ....trainer.config import AdapterConfig
from ....trainer.errors import KilnError
from ....trainer.rng import generator
from .. import paths
from .lora import read_lora


def start_state(model: Any, name: str, config: AdapterConfig) -> dict[str, Tensor]:
    """A LoRA file as the state of a fresh adapter, so that training begins where the file is.

    Whatever key format the host can read can be started from. A file of a smaller rank is filled up with fresh rows
    that do nothing yet.

    Args:
        model: a MODEL.
        name: as the host lists the file.
        config: of the adapter that is to be trained.

    Raises:
        KilnError: the file is no plain LoRA, has a larger rank, or holds layers that are not trained.
    """
    # peft: not at the host's start
    from ....trainer.adapter.targets import choose_convolutions, choose_targets, layer_shape

    if config.kind != "lora" or config.init != "default":
        raise KilnError(
            f"start_from needs an adapter of the kind lora with init default, and these are {config.kind} and "
            f"{config.init}; change them or start fresh."
        )
    keys: dict[str, Any] = comfy.lora.model_lora_keys_unet(model.model, {})
    tensors = dict(read_lora(paths.lora_path(name)))
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), keys)
    network = model.model.diffusion_model
    targets = {
        *choose_targets(network, config.target_modules, config.exclude_modules),
        *choose_convolutions(network, config),
    }
    state: dict[str, Tensor] = {}
    for key, patch in loaded.items():
        layer = str(key).removeprefix("diffusion_model.").removesuffix(".weight")
        up, down, alpha = _plain_lora(name, layer, patch)
        if layer not in targets:
            raise KilnError(
                f"start_from {name!r} holds the layer {layer}, which this run does not train; leave target_modules "
                "empty or name it there."
            )
        rank = down.shape[0]
        shape = layer_shape(layer, config, down.shape[2:])
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
    return state


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
