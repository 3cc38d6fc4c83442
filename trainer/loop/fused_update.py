"""The optimizer step of each parameter as soon as backward has its gradient, which is then freed.

The memory of all gradients is saved, 4 bytes per trained value. What looks at all gradients at once (clipping to a
norm, sums over batches or processes) has no place here; see OptimizerConfig.update_in_backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FusedUpdate:
    """Steps `optimizer` for each of `parameters` from inside backward (a post-accumulate-grad hook)."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.loss_scale = 1.0  # divided out of each gradient
        self._squares: list[Tensor] = []
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._step)

    def _step(self, parameter: Tensor) -> None:
        """One optimizer step for one parameter. Values that are not finite count as 0: whether there are any is
        not known before the whole step is over."""
        assert self.optimizer is not None and parameter.grad is not None
        if self.loss_scale != 1:
            parameter.grad.div_(self.loss_scale)
        self._squares.append(parameter.grad.detach().square().sum())
        parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        all_params = [group["params"] for group in self.optimizer.param_groups]
        try:
            for group, whole in zip(self.optimizer.param_groups, all_params, strict=True):
                group["params"] = [p for p in whole if p is parameter]
            self.optimizer.step()
        finally:
            for group, whole in zip(self.optimizer.param_groups, all_params, strict=True):
                group["params"] = whole
        parameter.grad = None

    def pop_grad_norm(self) -> Tensor:
        """The L2 norm of all gradients since the last call, as they came; 0 where there were none."""
        squares, self._squares = self._squares, []
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
