"""What a run will need of the device, by the host's own account of what is free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import comfy.model_management
import torch

from ....trainer.config import TrainConfig
from ....trainer.memory.estimate import Estimate, TextSizes, estimate


def trained_layers(module: torch.nn.Module, config: TrainConfig) -> tuple[list[str], int]:
    """Full names of the layers that the run would train, and how many parameters its adapter would have."""
    from ....trainer.adapter.targets import choose_convolutions, choose_targets, layer_shape

    targets = choose_targets(module, config.adapter.target_modules, config.adapter.exclude_modules)
    layers = dict(module.named_modules())
    trained = sum(
        layer_shape(t, config.adapter).rank * (layers[t].in_features + layers[t].out_features)
        for t in targets
    )
    convolutions = choose_convolutions(module, config.adapter)
    for layer, name in ((layers[name], name) for name in convolutions):
        rank = layer_shape(name, config.adapter, layer.kernel_size).rank
        trained += rank * (layer.in_channels * math.prod(layer.kernel_size) + layer.out_channels)
    return targets, trained


CAPTION_TOKENS = 77  # of CLIP; longer captions of other encoders count for little beside their weights


def text_sizes(module: torch.nn.Module, config: TrainConfig) -> TextSizes:
    """What training a text encoder takes beside the model. module: the CLIP's own."""
    from ....trainer.adapter.targets import choose_targets, layer_shape

    layers = dict(module.named_modules())
    targets = choose_targets(module, "")
    sides = {t: layers[t].in_features + layers[t].out_features for t in targets}
    return TextSizes(
        weights=sum(p.numel() * p.element_size() for p in module.parameters()),
        trained=sum(layer_shape(t, config.adapter).rank * width for t, width in sides.items()),
        activations=CAPTION_TOKENS * sum(sides.values()),
    )


def plan_memory(
    model: Any,
    denoiser: Any,
    config: TrainConfig,
    latent_shape: tuple[int, ...],
    file: Path | None = None,
    text: TextSizes | None = None,
) -> Estimate:
    """What the run will need of the device, and at which memory level, against what it has free when the host makes
    room.

    Args:
        file: see model_file.
        text: the text encoder's, where it is trained too.
    """
    from .frozen_weights import bytes_in_ram

    module = model.model.diffusion_model
    targets, trained = trained_layers(module, config)
    cpu = torch.device("cpu")
    free = free_ram = comfy.model_management.get_free_memory(cpu) + bytes_in_ram(module)
    kept = 0
    if denoiser.device != cpu:
        held = comfy.model_management.loaded_models()
        free = comfy.model_management.get_free_memory(denoiser.device)
        free += sum(m.loaded_size() for m in held if m.load_device == denoiser.device)
        # Other cards than NVIDIA's are filled to that share with weights, however much room is asked for
        kept = int(comfy.model_management.MIN_WEIGHT_MEMORY_RATIO * free)
    return estimate(
        module,
        targets,
        config,
        latent_shape,
        bytes_per_value=denoiser.dtype.itemsize,
        trained=trained,
        free=free,
        streams=denoiser.device != cpu,
        from_file=file is not None,
        free_ram=free_ram,
        kept=kept,
        text=text,
        staged=getattr(model, "is_dynamic", bool)(),  # host 0.33 pins no weights of such a model for long
    )
