"""Memory levels of the frozen base; trainer/memory/ is what they do."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import KilnError
from .fields import check_ranges, setting

STREAMED = ("stream blocks", "stream from file")
"""Memory levels at which blocks pass through the device."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Where the frozen model is while the LoRA is trained. All levels learn the same."""

    level: str = setting(
        "auto",
        "How much of the device's memory is used, from most to least. resident: all weights and activations. "
        "checkpoint activations: each block is computed again in backward, a third to a half slower. stream blocks: "
        "also keeps the blocks in CPU memory and brings in two at once. stream from file: reads them from its "
        "file instead, and the model's RAM is free. auto: the first that fits.",
        options=("auto", "resident", "checkpoint activations", "stream blocks", "stream from file"),
    )
    base_precision: str = setting(
        "as it is",
        "fp8 holds the weights of the trained layers in 8 bits, half of bf16; the LoRA then learns on slightly rounded "
        "weights. nf4 holds them in 4 bits (QLoRA), rounded more coarsely; needs the package bitsandbytes. Not with "
        "stream from file.",
        options=("as it is", "fp8", "nf4"),
    )
    offload_block_inputs: bool = setting(
        False,
        "Keep the inputs of the blocks in CPU memory until backward: for long videos. auto switches it on where it is "
        "needed; no effect when resident.",
    )
    compile_blocks: bool = setting(
        False,
        "Compile the blocks with torch.compile: the first step takes a minute or more, the others are faster on a GPU. "
        "For the kind lora without dropout, and not while blocks are streamed.",
    )
    recompute_parts: bool = setting(
        False,
        "Compute attention and MLP of a block again each on its own, the MLP in chunks of tokens: for long videos on a "
        "small card, a quarter slower. auto switches it on where it is needed; no effect when resident.",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.compile_blocks and self.level in STREAMED:
            raise KilnError(
                f"compile_blocks does not go with the level {self.level}; choose resident or checkpoint activations."
            )
        if self.level == "stream from file" and self.base_precision != "as it is":
            raise KilnError(
                f"base_precision {self.base_precision} does not go with stream from file, which reads the weights as "
                "the file has them; choose stream blocks or as it is."
            )
