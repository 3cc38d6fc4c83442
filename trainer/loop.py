"""The training loop, flat, in time order.

    question = noised latents at a drawn noise level    answer = model(question)    loss = (answer - target)^2

`train` runs on the calling thread and leaves the model alone when it returns, whatever happened. It stops at a step
boundary when told to, keeps what it has learned, and can go on later from its checkpoint exactly where it was:
every random draw is a function of the seed and the step (see rng.py).
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint, objective
from .adapter.fused import FrozenWeights, resident_weights
from .adapter.inject import LoraAdapter
from .config import TrainConfig
from .dataset.batches import BatchOrder, ItemStore, Showing
from .dataset.encoded import EncodedDataset
from .denoiser import Denoiser
from .errors import KilnError
from .events import CheckpointEvent, Controls, Listener, MessageEvent, StepEvent, Stopped
from .optim import make_optimizer, make_schedule
from .rng import generator
from .smoothing import SmoothedLoss

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves: also when it was stopped early."""

    adapter: dict[str, Tensor]  # LoraAdapter.state_dict()
    config: TrainConfig
    losses: list[float]  # one per step
    step: int  # steps done
    seconds: float  # spent in this session of the run
    stopped: bool  # before the last step


def train(
    denoiser: Denoiser,
    dataset: EncodedDataset,
    config: TrainConfig,
    *,
    run_folder: Path,
    base_model: str = "",
    weights: FrozenWeights = resident_weights,
    controls: Controls | None = None,
    emit: Listener = lambda event: None,
    resume_from: Path | None = None,
) -> TrainResult:
    """Train a LoRA.

    Args:
        denoiser: the frozen model.
        dataset: encoded items.
        config: all settings.
        run_folder: checkpoints go here.
        base_model: the model's fingerprint, kept in checkpoints.
        weights: where frozen linear layers' weights come from.
        controls: how others stop the run or borrow the device.
        emit: receives events.
        resume_from: a checkpoint folder of a run of the same model and dataset.

    Raises:
        KilnError: model and dataset do not match, the checkpoint does not fit, or the loss is no longer finite.
            A checkpoint that cannot be written is a MessageEvent: the run goes on.
    """
    controls = controls or Controls()
    if dataset.channels != denoiser.latent_channels:
        raise KilnError(
            f"The encoded latents have {dataset.channels} channels and this model needs {denoiser.latent_channels}; "
            "encode the dataset with the VAE that belongs to the model."
        )
    items = [i for i in dataset.items if i.role != "validation"]
    order = BatchOrder([i.shape for i in items], [i.repeats for i in items], config.batch_size, config.seed)
    store = ItemStore(items)
    accumulation = config.optimizer.gradient_accumulation
    started = time.monotonic()

    with ExitStack() as ending, ExitStack() as session:
        controls.take_device()
        ending.callback(controls.give_device)  # after the session is closed
        session.enter_context(denoiser.session())
        adapter = LoraAdapter(denoiser.module, config.adapter, config.seed, weights, denoiser.device)
        parameters = adapter.parameters()
        optimizer = make_optimizer(parameters, config)
        losses: list[float] = []
        if resume_from is not None:
            losses = _resume(resume_from, adapter, optimizer, dataset, base_model)
        schedule = make_schedule(optimizer, config, len(losses))
        smoothed = SmoothedLoss()
        for loss_then in losses:
            smoothed.add(loss_then)
        stopped = False

        def save() -> None:
            if not losses:
                return
            state = checkpoint.RunState(
                step=len(losses),
                losses=losses,
                config=config.to_dict(),
                dataset=dataset.fingerprint,
                base_model=base_model,
            )
            try:
                path = checkpoint.save_checkpoint(run_folder, state, adapter.state_dict(), optimizer)
            except (
                KilnError
            ) as error:  # a full disk must not end a run of hours: older checkpoints are still there
                log.warning("%s", error)
                emit(MessageEvent(text=str(error)))
            else:
                emit(CheckpointEvent(step=len(losses), path=path))

        try:
            for step in range(len(losses), config.steps):
                controls.at_boundary(session.close, lambda: session.enter_context(denoiser.session()))
                step_started = time.monotonic()

                # Gradients: the mean over all items of the step, however they are spread over batches
                batches = [order.batch(step * accumulation + micro) for micro in range(accumulation)]
                count = sum(map(len, batches))
                total = 0.0
                for micro, showings in enumerate(batches):
                    batch = store.load(showings)
                    question = _question(denoiser, config, batch.latents, showings)
                    adapter.set_step(config.seed, step * accumulation + micro)
                    answer = denoiser.forward(
                        question.noisy,
                        question.timestep,
                        {k: v.to(denoiser.device) for k, v in batch.conditioning.items()},
                    )
                    errors = objective.loss_per_item(answer, question.target, batch.mask)
                    loss = (errors * batch.weight.to(errors)).sum() / count
                    loss.backward()
                    total += loss.item()

                # Step
                limit = config.optimizer.max_grad_norm or math.inf
                grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
                if not (math.isfinite(total) and math.isfinite(grad_norm)):
                    raise KilnError(
                        f"The loss became {total} and its gradient {grad_norm} at step {step + 1}; lower the learning "
                        f"rate (now {config.optimizer.learning_rate:g}) and set resume to latest, or start again."
                    )
                learning_rate = float(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(total)
                emit(
                    StepEvent(
                        step=len(losses),
                        total=config.steps,
                        loss=total,
                        smoothed_loss=smoothed.add(total),
                        learning_rate=learning_rate,
                        grad_norm=grad_norm,
                        seconds=time.monotonic() - step_started,
                        epoch=len(losses) * accumulation / order.batches_per_epoch,
                    )
                )

                # Once in a while
                due = config.checkpoint_every and len(losses) % config.checkpoint_every == 0
                if controls.take_save_request() or (due and step + 1 < config.steps):
                    save()
            save()
        except Stopped:
            stopped = True
            save()
        except Exception:
            save()
            raise

        return TrainResult(
            adapter=adapter.state_dict(),
            config=config,
            losses=losses,
            step=len(losses),
            seconds=time.monotonic() - started,
            stopped=stopped,
        )


def _question(
    denoiser: Denoiser, config: TrainConfig, latents: Tensor, showings: list[Showing]
) -> objective.Question:
    """Draw noise and noise levels for one batch: CPU draws, so that every device sees the same numbers."""
    latents = denoiser.prepare_latents(latents.to(denoiser.device, torch.float32))
    noise, levels = [], []
    for showing in showings:
        draws = generator(config.seed, "noise", showing.epoch, showing.entry)
        noise.append(torch.randn(latents.shape[1:], generator=draws))
        levels.append(objective.draw_levels(config.objective, denoiser.prediction, 1, draws))
    return objective.ask(
        denoiser, latents, torch.stack(noise).to(latents.device), torch.cat(levels).to(latents.device)
    )


def _resume(
    path: Path,
    adapter: LoraAdapter,
    optimizer: torch.optim.Optimizer,
    dataset: EncodedDataset,
    base_model: str,
) -> list[float]:
    """Put a checkpoint's state into adapter and optimizer; returns the losses so far."""
    state = checkpoint.read_state(path)
    for what, saved, now in (
        ("dataset", state.dataset, dataset.fingerprint),
        ("model", state.base_model, base_model),
    ):
        if saved != now:
            raise KilnError(
                f"The run cannot be resumed: its {what} is not the one connected now. Connect the same {what}, or "
                "start a new run."
            )
    adapter.load_state_dict(checkpoint.read_adapter(path))
    checkpoint.restore_optimizer(path, optimizer)
    return list(state.losses)
