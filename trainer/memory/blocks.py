"""The blocks of a network: members of its ModuleLists, the outermost where they are nested, in model order."""

from __future__ import annotations

from torch import nn


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """Each block once. Empty where a network has none: then nothing can be recomputed or streamed block by block."""
    members = [child for m in module.modules() if isinstance(m, nn.ModuleList) for child in m]
    inner = {id(m) for block in members for m in block.modules() if m is not block}
    return list({id(b): b for b in members if id(b) not in inner}.values())
