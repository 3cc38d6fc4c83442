"""Many parameters as views of one vector (FSDP's FlatParameter): one kernel clips, steps, averages or sends all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def flatten_parameters(parameters: Sequence[nn.Parameter], with_gradients: bool = True) -> nn.Parameter:
    """Move values and gradients of the parameters into one vector, in their order.

    Each parameter keeps its shape and becomes a view of it, as does its gradient, which is zero from now on and must
    be cleared by filling the vector's, never by None. Neighbours of equal width stay neighbours, so that the matrices
    of several layers can be read as one.

    Args:
        parameters: at least one, all of one type on one device.
        with_gradients: False: only the values are flattened; each parameter gets a gradient of its own in backward.

    Returns:
        (sum of sizes,), with its gradient if there is one.
    """
    first = parameters[0]
    flat = nn.Parameter(
        torch.empty(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    )
    if with_gradients:
        flat.grad = torch.zeros_like(flat)
    offset = 0
    for parameter in parameters:
        part = slice(offset, offset + parameter.numel())
        view = flat.data[part].view(parameter.shape)
        view.copy_(parameter.data)
        parameter.data = view
        if flat.grad is not None:
            parameter.grad = flat.grad[part].view(parameter.shape)
        offset += parameter.numel()
    return flat
