"""A backward for the host's fused kernels that have none.

Host 0.33 normalises and rotates through comfy_kitchen, whose operators know no gradient. Most of its networks take
another way while training (see training_mode in differentiable_ops.py), some do not (Cosmos Predict2 and Anima among
them). The kitchen has each operator in plain torch as well, its "eager" backend: the gradient of that is the kernel's.
Only forwards that record a graph notice.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "comfy_kitchen"
SMOOTH = re.compile(
    r"rope|adaln"
)  # and not the quantised products, whose plain torch rounds: no gradient goes through


@functools.cache
def differentiate_kernels() -> None:
    """Once per process; nothing on hosts that have no such kernels."""
    try:
        kitchen = importlib.import_module(NAMESPACE)
    except ImportError:  # 0.3.75
        return
    registry = kitchen.registry
    for name in registry.list_backends().get("eager", {}).get("capabilities", ()):
        operator = getattr(getattr(torch.ops, NAMESPACE), name, None)
        if operator is None or not SMOOTH.search(name) or operator.default._schema.is_mutable:
            continue
        plain = registry.get_implementation(name, backend="eager")
        backward, keep_inputs = _gradient_of(plain)
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=keep_inputs)


def _gradient_of(plain: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., None]]:
    """`backward` and `setup_context` of an operator that computes what `plain` does."""

    def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(v for v in inputs if isinstance(v, Tensor)))
        ctx.others = [None if isinstance(v, Tensor) else (v,) for v in inputs]

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved).detach() if other is None else other[0] for other in ctx.others]
        # Numbers that were left at their default come last, and torch asks nothing about them
        wanted = [v for v, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
        with torch.enable_grad():
            for tensor in wanted:
                tensor.requires_grad_()
            answer = plain(*inputs)
        answers = [answer] if isinstance(answer, Tensor) else list(answer)
        used = [(a, g) for a, g in zip(answers, grads, strict=True) if g is not None and a.requires_grad]
        found = iter(
            torch.autograd.grad([a for a, _ in used], wanted, [g for _, g in used], allow_unused=True)
        )
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)

    return backward, keep_inputs
