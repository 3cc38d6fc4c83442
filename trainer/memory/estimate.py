"""How much of the device's memory a run will need, before it starts, and which memory level that calls for.

weights        as they are; with a base in fp8 or nf4 the trained layers' so; streamed: two blocks, the rest, and the
               scales of all quantised layers. A text encoder that is trained too is there whole, and
               computes in fp32
adapter        4 bytes each for the values
gradients      4 bytes each
optimizer      bytes of memory per trained parameter, by name
activations    what backward needs of each block (see activations.py); recomputed: those of the largest block, and the
               inputs of all (of two, when they wait in CPU memory)
pinned         CPU memory that copies pass through: block inputs that wait there, and a streamed block's way through it.
               torch takes it in powers of two, block inputs in pieces of that size (offload.py)
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import nn

from ..config import STREAMED, MemoryConfig, TrainConfig
from .activations import Activations
from .blocks import find_blocks
from .ledger import size_of
from .offload import pinned_bytes, power_of_two
from .quantised_base import BYTES_PER_VALUE, quantised_bytes, scale_bytes

# Bytes that an optimizer remembers per trained parameter
OPTIMIZER_BYTES = {
    "adamw": 8,
    "adamw_8bit": 2,
    "adafactor": 1,
    "lion": 4,
    "prodigy": 16,
    "schedule_free_adamw": 8,
}

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations")

MARGIN = 0.9  # share of the free memory that auto counts on: the plan is a model, and allocators leave gaps

# What auto tries, from the fastest to the smallest: level, and whether block inputs wait in CPU memory
LADDER = (
    ("resident", False),
    ("checkpoint activations", False),
    ("checkpoint activations", True),
    ("stream blocks", False),
    ("stream blocks", True),
)
# and at last the last of them with attention and MLP of a block computed again apart


@dataclass(frozen=True)
class TextSizes:
    """Of a text encoder that is trained beside the model."""

    weights: int  # bytes
    trained: int  # parameters of its adapter
    activations: int  # fp32 values that backward needs for one caption


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes by part at one level, and the advice when they are too many."""

    memory: MemoryConfig = dataclasses.field(default_factory=lambda: MemoryConfig(level="resident"))
    """The decided level."""
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    pinned: int = 0  # of CPU memory; no part of the total
    reason: str = ""  # why auto chose the level: how the sentence goes on
    advice: str = ""

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in PARTS)

    def sentence(self) -> str:
        """For the node's text."""
        parts = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in PARTS)
        text = f"needs about {self.total / 2**30:.2f} GiB ({parts}) at memory level {self.memory.level}"
        if self.memory.offload_block_inputs and self.memory.level != "resident":
            text += " with block inputs in CPU memory"
        if self.memory.recompute_parts and self.memory.level != "resident":
            text += ", attention and MLP recomputed apart"
        if self.pinned >= 2**28:
            text += f", and {self.pinned / 2**30:.2f} GiB of pinned CPU memory"
        text += self.reason
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
    streams: bool = True,
    from_file: bool = False,
    free_ram: int | None = None,
    staged: bool = False,
    kept: int = 0,
    text: TextSizes | None = None,
) -> Estimate:
    """Plan the memory of a run and decide its level.

    Args:
        module: the network.
        targets: full names of the layers that are trained.
        config: the run's settings.
        latent_shape: of the largest item, (C, [F,] h, w).
        bytes_per_value: of the precision that the network computes in.
        trained: parameters of the adapter.
        free: bytes the device has for the run, the weights included; None where that is not known.
        streams: whether streaming frees memory of this device; not on the CPU, where the weights are anyway.
        from_file: whether the weights are those of one file, so that they can be streamed from it.
        free_ram: bytes of CPU memory that are free for weights; None where that is not known.
        staged: whether the weights that are kept in CPU memory are not pinned.
        kept: bytes of the blocks' weights that stay on the device although they are streamed.
        text: the text encoder, where it is trained too.
    """
    sizes = _Sizes(module, targets, config, latent_shape, bytes_per_value, trained, staged, kept, text)
    if config.memory.level != "auto":
        return _with_advice(sizes.plan(config.memory), sizes, config, free)
    ladder = [
        dataclasses.replace(
            config.memory,
            level=level,
            offload_block_inputs=offload or (config.memory.offload_block_inputs and level != "resident"),
        )
        for level, offload in LADDER
        if level == "resident" or (sizes.has_blocks and (streams or (level not in STREAMED and not offload)))
    ]
    if ladder[-1].level != "resident":
        ladder.append(dataclasses.replace(ladder[-1], recompute_parts=True))
    plans = [sizes.plan(memory) for memory in ladder]
    if free is None:
        return plans[0]
    chosen = next((p for p in plans if p.total <= MARGIN * free), min(plans, key=lambda p: p.total))
    if chosen.memory.level == "stream blocks" and from_file and free_ram is not None:
        kept = sizes.whole - chosen.weights
        if free_ram < kept and config.memory.base_precision == "as it is":
            chosen = sizes.plan(dataclasses.replace(chosen.memory, level="stream from file"))
    reason = f", chosen for the {_gib(free)} that are free"
    if chosen.memory.level != "resident":
        reason += f" (resident needs {_gib(plans[0].total)})"
    return _with_advice(dataclasses.replace(chosen, reason=reason), sizes, config, free)


class _Sizes:
    """The bytes that plans are made of."""

    def __init__(
        self,
        module: nn.Module,
        targets: list[str],
        config: TrainConfig,
        latent_shape: tuple[int, ...],
        bytes_per_value: int,
        trained: int,
        staged: bool,
        kept: int,
        text: TextSizes | None,
    ) -> None:
        layers = dict(module.named_modules())
        blocks = find_blocks(module)
        self.has_blocks = bool(blocks)
        self._text = text or TextSizes(0, 0, 0)
        self._config, self._staged, self._kept = config, staged, kept
        self._trained = trained + self._text.trained
        self.whole = sum(size_of(p) for p in module.parameters())
        as_it_is = [sum(size_of(p) for p in block.parameters()) for block in blocks]
        self._blocks = {"as it is": as_it_is}
        outside = self.whole - sum(as_it_is)
        inside = {id(m) for block in blocks for m in block.modules()}
        self._outside = {"as it is": outside}
        self._scales = {"as it is": 0}
        for precision in BYTES_PER_VALUE:
            self._scales[precision] = sum(
                scale_bytes(layers[t].weight, precision) for t in targets if id(layers[t]) in inside
            )
            saved = {
                id(layers[t]): size_of(layers[t].weight) - quantised_bytes(layers[t].weight, precision)
                for t in targets
            }
            self._blocks[precision] = [
                size - sum(saved.get(id(m), 0) for m in block.modules())
                for size, block in zip(as_it_is, blocks, strict=True)
            ]
            self._outside[precision] = outside - sum(s for i, s in saved.items() if i not in inside)
        self._values = Activations(module, targets, latent_shape)
        self._bytes_per_value = bytes_per_value

    def plan(self, memory: MemoryConfig) -> Estimate:
        """At that level."""
        blocks = self._blocks[memory.base_precision]
        streamed = memory.level in STREAMED and blocks
        weights = self._outside[memory.base_precision]
        if streamed:
            weights += 2 * max(blocks) + min(self._kept, sum(blocks)) + self._scales[memory.base_precision]
        else:
            weights += sum(blocks)
        weights += self._text.weights
        ema = 4 if self._config.optimizer.ema_decay else 0
        name = self._config.optimizer.optimizer.lower()
        pinned = 0
        quantised = memory.base_precision != "as it is"
        if streamed and (self._staged or quantised or memory.level == "stream from file"):
            pinned += 2 * power_of_two(max(blocks))
        if memory.offload_block_inputs and memory.level != "resident":
            per_value = self._config.batch_size * self._bytes_per_value
            pinned += sum(pinned_bytes(count * per_value) for count in self._values.inputs)
        return Estimate(
            memory=memory,
            weights=weights,
            adapter=self._trained * (4 + ema),
            gradients=0 if self._config.optimizer.update_in_backward else self._trained * 4,
            optimizer=self._trained * OPTIMIZER_BYTES.get(name, 8),
            activations=self.activations(memory) * self._config.batch_size,
            pinned=pinned,
        )

    def activations(self, memory: MemoryConfig) -> int:
        """For one item."""
        of_text = 4 * self._text.activations
        if memory.level == "resident":
            return self._values.whole * self._bytes_per_value + of_text
        recomputed = self._values.recomputed(memory.offload_block_inputs, memory.recompute_parts)
        return recomputed * self._bytes_per_value + of_text


def _with_advice(plan: Estimate, sizes: _Sizes, config: TrainConfig, free: int | None) -> Estimate:
    if free is None or plan.total <= free:
        return plan
    return dataclasses.replace(plan, advice=_advice(plan, config, sizes.activations(plan.memory), free))


def _advice(plan: Estimate, config: TrainConfig, per_item: int, free: int) -> str:
    have = f"The device has {_gib(free)} free"
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
    if plan.memory.level in STREAMED:
        return f"{have}, which does not hold two blocks and the adapter; lower the rank or use an fp8 or nf4 base."
    return f"{have}, which does not hold the weights and the adapter; lower the rank or use an fp8 model."


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
