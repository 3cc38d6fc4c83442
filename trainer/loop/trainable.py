"""Adapter, optimizer and EMA as one checkpointable state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ..adapter.flat_parameter import flatten_parameters
from ..adapter.frozen_weights import FrozenWeights
from ..adapter.inject import make_adapter
from ..adapter.joined import JoinedAdapter, seed_of_text_encoder
from ..adapter.protocol import Adapter
from ..config import TrainConfig
from ..denoiser import Denoiser
from ..runs import checkpoint
from .fused_update import FusedUpdate
from .optim import make_optimizer, make_schedule, wants_shapes
from .text import TrainedText


def _parts_of(adapter: Adapter, rate: float, ratio: float) -> list[tuple[list[nn.Parameter], float]]:
    """The parameters of an adapter and their learning rates. Output matrices apart, for LoRA+; the input matrices of q,
    k and v become neighbours, which fused.py uses."""
    outputs = adapter.output_matrices()
    output_ids = {id(p) for p in outputs}
    inputs = [p for p in adapter.parameters() if id(p) not in output_ids]
    return [(part, r) for part, r in ((inputs, rate), (outputs, rate * ratio)) if part]


class Trainable:
    """The trained part of a run: adapter weights, optimizer and EMA. Made inside the denoiser's session.

    Attributes:
        adapter: the layers in the shared clone.
        loss_scale: factor on the loss in backward, divided out again by clip_gradients (see loss_scale.py).
        buffers: all its values, and their gradients, as one vector or two of each network (see
            adapter/flat_parameter.py).
        ema_updates: steps that the EMA has seen.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        weights: FrozenWeights,
        start: dict[str, Tensor] | None = None,
        text: TrainedText | None = None,
    ) -> None:
        """
        Args:
            start: an adapter state dict to begin from instead of fresh values; layers it lacks stay fresh.
            text: the text encoder, where it is trained too.
        """
        self._config = config
        self.loss_scale = 1.0
        options = config.optimizer
        self.adapter = make_adapter(denoiser.module, config.adapter, config.seed, weights, denoiser.device)
        self._parts = _parts_of(self.adapter, options.learning_rate, options.lora_plus_ratio)
        if text is not None:
            seed = seed_of_text_encoder(config.seed)
            own = make_adapter(text.encoder.module, text.adapter, seed, text.weights, denoiser.device)
            self._parts += _parts_of(own, options.text_encoder_learning_rate, options.lora_plus_ratio)
            self.adapter = JoinedAdapter(self.adapter, own)
        self._fused_update: FusedUpdate | None = None
        if options.update_in_backward:
            self._fused_update = FusedUpdate([p for part, _ in self._parts for p in part])
        with_gradients = self._fused_update is None
        self.buffers = [flatten_parameters(part, with_gradients) for part, _ in self._parts]
        self._schedule = make_schedule(config)
        self._start = {**self.adapter.state_dict(), **(start or {})}
        self.reset()

    def reset(self) -> None:
        """To the start of the run: for one that begins, or rolls back to before its first checkpoint."""
        self.adapter.load_state_dict(self._start)
        self._make_optimizer(0)

    def restore(self, path: Path) -> checkpoint.RunState:
        """Load a checkpoint; returns its RunState."""
        state = checkpoint.read_state(path)
        self.adapter.load_state_dict(checkpoint.read_output(path))  # the EMA starts from these
        self._make_optimizer(state.ema_updates)
        self.adapter.load_state_dict(checkpoint.read_adapter(path))
        checkpoint.restore_optimizer(path, self._optimizer)
        return state

    def _make_optimizer(self, ema_updates: int) -> None:
        """A fresh optimizer, and an EMA that starts at the adapter's present values."""
        options = self._config.optimizer
        self._optimizer = make_optimizer(self._groups(), options)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._averages = callable(
            getattr(self._optimizer, "eval", None)
        )  # schedule-free: has two sets of weights
        if self._averages:
            self._optimizer.train()  # type: ignore[attr-defined]
        if self._fused_update is not None:
            self._fused_update.optimizer = self._optimizer
        self._ema = None
        if options.ema_decay:
            self._ema = EMAModel(self.buffers, decay=options.ema_decay)
            self._ema.optimization_step = ema_updates

    def _groups(self) -> list[dict[str, Any]]:
        """By learning rate: input and output matrices, of the model and of the text encoder."""
        single = wants_shapes(self._config.optimizer) or self._fused_update is not None
        return [
            {"params": part if single else [buffer], "lr": rate}
            for (part, rate), buffer in zip(self._parts, self.buffers, strict=True)
        ]

    @property
    def ema_updates(self) -> int:
        return 0 if self._ema is None else int(self._ema.optimization_step)

    def backward(self, loss: Tensor, limit: float) -> None:
        """Add the gradients of a loss to what is there. With update_in_backward the optimizer steps meanwhile, so a
        loss that is not finite is left out here, and one above `limit` is scaled down to it."""
        if self._fused_update is None:
            (loss if self.loss_scale == 1 else loss * self.loss_scale).backward()
        elif loss.isfinite():  # waits for the device
            self._fused_update.loss_scale = self.loss_scale
            (loss * (self.loss_scale * (limit / loss.detach()).clamp(max=1))).backward()

    def clip_gradients(self, factor: Tensor | None = None) -> Tensor:
        """Divide the gradients by the loss scale, multiply them by `factor`, then scale them down to max_grad_norm;
        returns their norm before the last. Nothing waits for the device."""
        if self._fused_update is not None:
            return self._fused_update.pop_grad_norm()
        norm = torch.nn.utils.get_total_norm([b.grad for b in self.buffers if b.grad is not None])
        scale = torch.ones_like(norm) if factor is None else factor.to(norm)
        if self.loss_scale != 1:
            scale = scale / self.loss_scale
        norm = norm * scale
        if limit := self._config.optimizer.max_grad_norm:
            scale = scale * (limit / (norm + 1e-6)).clamp(max=1)
        for buffer in self.buffers:
            assert buffer.grad is not None
            buffer.grad.mul_(scale)
        return norm

    def learning_rate(self, step: int, factor: float = 1.0) -> float:
        """The learning rate of the step after `step` steps (of the A matrices, where B's differs)."""
        return self._rates[0] * self._schedule(step) * factor

    def set_learning_rate(self, step: int, factor: float = 1.0) -> None:
        """Choose the learning rate of the step after `step` steps; before its backward."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._schedule(step) * factor

    def optimizer_step(self) -> None:
        """One optimizer step with the gradients that are there."""
        if self._fused_update is None:
            self._optimizer.step()
        self.adapter.limit_norms()
        if self._ema is not None:
            self._ema.step(self.buffers)
        self.zero_grad()

    def zero_grad(self) -> None:
        for buffer in self.buffers:
            if buffer.grad is not None:  # with update_in_backward they are forgotten already
                buffer.grad.zero_()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the adapter is in eval mode: the EMA of its weights (or the optimizer's own average), no dropout."""
        self.adapter.disable_dropout()
        if self._ema is None and not self._averages:
            yield
            return
        trained = [p.detach().clone() for p in self.buffers]
        if self._averages:
            self._optimizer.eval()  # type: ignore[attr-defined]
        else:
            assert self._ema is not None
            self._ema.copy_to(self.buffers)
        try:
            yield
        finally:
            if self._averages:
                self._optimizer.train()  # type: ignore[attr-defined]
            for buffer, value in zip(self.buffers, trained, strict=True):
                buffer.data.copy_(value)  # going there and back again would round

    def output(self) -> dict[str, Tensor]:
        """The adapter's state dict for use: averaged where the run averages."""
        with self.averaged_weights():
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
