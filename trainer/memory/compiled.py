"""torch.compile, block by block: all blocks of a network share one compiled graph, so the first step pays once.

Inside a compiled block a LoRA layer is written as plain arithmetic (see adapter/fused.py), which the compiler fuses by
itself. Weights must stay where they are: nothing is streamed.
"""

from __future__ import annotations

import torch
from torch import nn

from .blocks import find_blocks
from .copy_on_write import COMPILED


def compile_blocks(module: nn.Module, backend: str = "inductor", whole: bool = False) -> None:
    """Compile the forward of every block of a shared clone, once.

    Args:
        whole: raise where a block does not fit in one graph.
    """
    module.__dict__[COMPILED] = True
    for block in find_blocks(module):
        if "forward" not in block.__dict__:
            forward = type(block).forward.__get__(block)
            block.__dict__["forward"] = torch.compile(forward, backend=backend, fullgraph=whole)
