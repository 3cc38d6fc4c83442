"""How much of the device's memory a run will need, before it starts.

    weights        as they are
    adapter        4 bytes each for value and gradient
    optimizer      bytes of memory per trained parameter, by name
    activations    what backward needs of each block: inputs and outputs of its linear layers, for every token

The last is a model of a transformer block, not a measurement: tests hold it against what torch really keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from .config import TrainConfig

# Bytes that an optimizer remembers per trained parameter
OPTIMIZER_BYTES = {
    "adamw": 8,
    "adamw_8bit": 2,
    "adafactor": 1,
    "lion": 4,
    "prodigy": 16,
    "schedule_free_adamw": 8,
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes by part, and the advice when they are too many."""

    weights: int
    adapter: int
    optimizer: int
    activations: int
    advice: str = ""

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.optimizer + self.activations

    def sentence(self) -> str:
        """For the node's text."""
        parts = ", ".join(
            f"{name} {getattr(self, name) / 2**30:.2f}"
            for name in ("weights", "adapter", "optimizer", "activations")
        )
        text = f"needs about {self.total / 2**30:.2f} GiB ({parts})"
        return f"{text}. {self.advice}" if self.advice else text


def estimate(
    module: nn.Module,
    targets: list[str],
    config: TrainConfig,
    latent_shape: tuple[int, ...],
    *,
    bytes_per_value: int,
    trained: int,
    free: int | None = None,
) -> Estimate:
    """Plan the memory of a run.

    Args:
        module: the network.
        targets: full names of the layers that are trained.
        config: the run's settings.
        latent_shape: of the largest item, (C, [F,] h, w).
        bytes_per_value: of the precision that the network computes in.
        trained: parameters of the adapter.
        free: bytes the device has for the run, the weights included; None where that is not known.
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    name = config.optimizer.optimizer.lower()
    kept = trained * (8 + (4 if config.optimizer.ema_decay else 0))
    memory = trained * OPTIMIZER_BYTES.get(name, 8)
    per_item = tokens(module, latent_shape) * bytes_per_value * features(module, targets)
    activations = per_item * config.batch_size
    plan = Estimate(weights=weights, adapter=kept, optimizer=memory, activations=activations)
    if free is None or plan.total <= free:
        return plan
    advice = _advice(plan, config, per_item, free)
    return Estimate(weights=weights, adapter=kept, optimizer=memory, activations=activations, advice=advice)


def _advice(plan: Estimate, config: TrainConfig, per_item: int, free: int) -> str:
    have = f"The device has {free / 2**30:.2f} GiB free"
    rest = free - (plan.total - plan.activations)
    fitting = rest // max(per_item, 1)
    if fitting >= 1:
        more = math.ceil(config.batch_size * config.optimizer.gradient_accumulation / fitting)
        return f"{have}; batch_size {fitting} with gradient_accumulation {more} would fit."
    if rest > 0:
        return (
            f"{have}; a resolution lower by about {1 - (rest / per_item) ** 0.5:.0%} would fit. Activation "
            "checkpointing is switched on by itself when the memory runs out."
        )
    return f"{have}, which does not hold the weights and the adapter; lower the rank or use an fp8 model."


def tokens(module: nn.Module, latent_shape: tuple[int, ...]) -> int:
    """Places of a latent that the network sees: its elements over the patch."""
    patch = getattr(module, "patch_size", 2)
    sides = [int(p) for p in patch] if isinstance(patch, tuple | list) else [int(patch)] * 2
    return max(1, math.prod(latent_shape[1:]) // math.prod(sides))


def features(module: nn.Module, targets: list[str]) -> int:
    """Values per token that backward needs: the input and output widths of the trained layers. Layers of one block that
    read the same input share it; what a block keeps beside (norms, attention) is about as much."""
    layers = dict(module.named_modules())
    return sum(layers[t].in_features + layers[t].out_features for t in targets)
