"""Put an adapter of any kind into a network.

An adapter changes only the module it is given, which is a clone of the model's own (memory/shared_clone.py), so nothing
has to be taken out again.
"""

from __future__ import annotations

import torch
from torch import nn

from ..config import AdapterConfig
from ..errors import KilnError
from .frozen_weights import FrozenWeights, resident_weights
from .lora import LoraAdapter
from .peft_adapter import PeftAdapter
from .protocol import Adapter


def make_adapter(
    module: nn.Module,
    config: AdapterConfig,
    seed: int,
    weights: FrozenWeights = resident_weights,
    device: torch.device | None = None,
) -> Adapter:
    """Inject a fresh adapter of the kind that `config` names.

    Raises:
        KilnError: no layer matches, or the settings do not go together.
    """
    if config.kind != "lora" and (config.init != "default" or config.max_weight_norm):
        raise KilnError(
            f"init and max_weight_norm are for the kind lora, and the kind is {config.kind}; set init to default and "
            "max_weight_norm to 0."
        )
    if config.kind != "lora" and config.conv_rank:
        raise KilnError(f"conv_rank is for the kind lora, and the kind is {config.kind}; set conv_rank to 0.")
    if config.rank_dropout and config.kind in ("dora", "oft"):
        raise KilnError(f"rank_dropout is not for the kind {config.kind}; set it to 0 and use dropout.")
    if config.kind == "lora":
        return LoraAdapter(module, config, seed, weights, device)
    return PeftAdapter(module, config, seed, weights, device)
