"""What learns: the adapter, its optimizer and their running mean, moved by one method and saved as one thing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from . import checkpoint
from .adapter.fused import FrozenWeights
from .adapter.inject import make_adapter
from .config import TrainConfig
from .denoiser import Denoiser
from .optim import make_optimizer, make_schedule


class Learner:
    """The trained part of a run. Made inside the denoiser's session.

    Attributes:
        adapter: the layers in the twin.
        parameters: its tensors, in a fixed order.
        ema_updates: steps that the running mean has seen.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        weights: FrozenWeights,
        start: dict[str, Tensor] | None = None,
    ) -> None:
        """start: an adapter state dict to begin from instead of fresh values; layers it lacks stay fresh."""
        self._config = config
        self.adapter = make_adapter(denoiser.module, config.adapter, config.seed, weights, denoiser.device)
        self.parameters = self.adapter.parameters()
        self._schedule = make_schedule(config)
        self._start = {**self.adapter.state_dict(), **(start or {})}
        self.restart()

    def restart(self) -> None:
        """As if nothing had been learned: for a run that begins, or rolls back to before its first checkpoint."""
        self.adapter.load_state_dict(self._start)
        self._renew(0)

    def restore(self, path: Path) -> checkpoint.RunState:
        """As a checkpoint holds it; returns where that run stood."""
        state = checkpoint.read_state(path)
        self.adapter.load_state_dict(checkpoint.read_output(path))  # the running mean starts from these
        self._renew(state.ema_updates)
        self.adapter.load_state_dict(checkpoint.read_adapter(path))
        checkpoint.restore_optimizer(path, self._optimizer)
        return state

    def _renew(self, ema_updates: int) -> None:
        """A fresh optimizer, and a running mean that starts at the adapter's present values."""
        options = self._config.optimizer
        self._optimizer = make_optimizer(self._groups(), options)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._averages = callable(
            getattr(self._optimizer, "eval", None)
        )  # schedule-free: has two sets of weights
        if self._averages:
            self._optimizer.train()  # type: ignore[attr-defined]
        self._ema = None
        if options.ema_decay:
            self._ema = EMAModel(self.parameters, decay=options.ema_decay)
            self._ema.optimization_step = ema_updates

    def _groups(self) -> list[dict[str, Any]]:
        rate, ratio = self._config.optimizer.learning_rate, self._config.optimizer.lora_plus_ratio
        faster = self.adapter.output_matrices() if ratio != 1 else []
        slower = [p for p in self.parameters if not any(p is q for q in faster)]
        groups: list[dict[str, Any]] = [{"params": slower, "lr": rate}]
        return [*groups, {"params": faster, "lr": rate * ratio}] if faster else groups

    @property
    def ema_updates(self) -> int:
        return 0 if self._ema is None else int(self._ema.optimization_step)

    def clip_gradients(self) -> float:
        """Scale the gradients down to max_grad_norm; returns their norm before that."""
        limit = self._config.optimizer.max_grad_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))

    def rate_at(self, step: int, factor: float = 1.0) -> float:
        """The learning rate of the step after `step` steps (of the A matrices, where B's differs)."""
        return self._rates[0] * self._schedule(step) * factor

    def move(self, step: int, factor: float = 1.0) -> None:
        """One optimizer step with the gradients that are there; `factor` multiplies the schedule's rate."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._schedule(step) * factor
        self._optimizer.step()
        self.adapter.limit_norms()
        if self._ema is not None:
            self._ema.step(self.parameters)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @contextmanager
    def as_used(self) -> Iterator[None]:
        """Inside, the adapter holds the weights that are validated, sampled with and saved, without dropout."""
        self.adapter.rest()
        if self._ema is None and not self._averages:
            yield
            return
        kept = [p.detach().clone() for p in self.parameters]
        if self._averages:
            self._optimizer.eval()  # type: ignore[attr-defined]
        else:
            assert self._ema is not None
            self._ema.copy_to(self.parameters)
        try:
            yield
        finally:
            if self._averages:
                self._optimizer.train()  # type: ignore[attr-defined]
            for parameter, value in zip(self.parameters, kept, strict=True):
                parameter.data.copy_(value)  # going there and back again would round

    def output(self) -> dict[str, Tensor]:
        """The adapter's state dict as it is to be used."""
        with self.as_used():
            return self.adapter.state_dict()

    def save(self, run_folder: Path, state: checkpoint.RunState) -> Path:
        """Write a checkpoint; raises KilnError when that fails."""
        differs = self._ema is not None or self._averages
        return checkpoint.save_checkpoint(
            run_folder,
            state,
            self.adapter.state_dict(),
            self._optimizer,
            keep=self._config.keep_checkpoints,
            output=self.output() if differs else None,
        )
