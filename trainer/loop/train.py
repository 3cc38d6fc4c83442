"""The training loop.

    noisy = latents noised to a drawn level    prediction = model(noisy)    loss = (prediction - target)^2

`train` runs on the calling thread and leaves the model alone when it returns, whatever happened. It stops at a step
boundary when told to, keeps what it has learned, and can go on later from its checkpoint exactly where it was: every
random draw is a function of the seed and the step (see rng.py), and whatever else a step depends on is in the
checkpoint (see runs/checkpoint.py). What happens once in a while is in state.py, a step that goes wrong in guards.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapter.frozen_weights import FrozenWeights, resident_weights
from ..config import MemoryConfig, TrainConfig
from ..dataset.encoded import EncodedDataset
from ..denoiser import Denoiser, TextEncoder
from ..events import Controls, Listener, Stopped
from ..memory.placement import Placement
from ..memory.recompute import checkpoint_blocks
from ..runs.samples import Sampler
from . import guards, objective
from .checks import check_compatible, resolve_auto, same_layers
from .distributed import ProcessGroup, all_reduce_gradients
from .loss_scale import loss_scale
from .progress import TrainResult
from .state import TrainingState
from .text import trained_text


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
    start_from: dict[str, Tensor] | None = None,
    group: ProcessGroup | None = None,
    sampler: Sampler | None = None,
    memory: MemoryConfig | None = None,
    model_file: Path | None = None,
    text_encoder: TextEncoder | None = None,
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
        start_from: an adapter state dict to begin from instead of fresh values.
        group: the processes that train together.
        sampler: draws with the adapter as config.sample says; nothing that happens in it changes the result.
        memory: config.memory with its level decided; without it auto is resident.
        model_file: the safetensors file that the model's weights come from, unchanged; for streaming from it.
        text_encoder: trained too; without one the encoded captions are what the model is given.

    Raises:
        KilnError: model, dataset and settings do not match, the checkpoint does not fit, the loss stays non-finite, or
            the device's memory does not suffice. A checkpoint that cannot be written is a MessageEvent: the run goes
            on.
    """
    # One function, longer than others: the method reads downward without a jump
    started = time.monotonic()
    controls, group = controls or Controls(), group or ProcessGroup()
    config = resolve_auto(config, denoiser, resume_from)
    check_compatible(denoiser, dataset, config, group.size)
    adapter = same_layers(config.adapter, resume_from)
    text = trained_text(text_encoder, dataset, config, weights, resume_from)
    with _device(controls) as session:
        state = TrainingState(
            denoiser=denoiser,
            dataset=dataset,
            config=config,
            run_folder=run_folder,
            base_model=base_model,
            adapter=adapter,
            placement=Placement(denoiser, memory or config.memory, adapter, weights, model_file),
            session=session,
            group=group,
            sampler=sampler,
            emit=emit,
            text=text,
            started=started,
        )
        state.set_up(start_from, resume_from)
        trainable, progress, prefetcher = state.trainable, state.progress, state.prefetcher
        try:
            state.before_first_step()
            while progress.step < config.steps and not state.stopped_early:
                state.at_step_boundary(controls)
                step, step_started = progress.step, time.monotonic()

                # Forward and backward: the mean over all items of the step, however they are spread over micro-batches
                # and processes
                limit = guards.spike_limit(progress.losses, config.guards)
                trainable.set_learning_rate(step, progress.guard.rate)
                trainable.loss_scale = loss_scale(progress.guard, denoiser.dtype)
                found = _gradients_with_retry(state, step, limit)
                device_loss = all_reduce_gradients(group, trainable.buffers, found.loss)
                device_norm = trainable.clip_gradients((limit / device_loss).clamp(max=1))
                if step + 1 < config.steps:
                    guards.prefetch(partial(prefetcher.prefetch, step + 1, progress.guard.parts))
                # The step's one wait for the device
                figures = torch.stack([device_loss.float(), device_norm])
                loss, grad_norm, *of_items = torch.cat([figures, found.errors, found.levels]).tolist()
                if state.overflowed(loss, grad_norm):
                    continue  # the same step at half the loss scale
                progress.guard.clipped_spikes += loss > limit

                # Optimizer step
                state.warn_of_layers_without_gradient()
                rate = trainable.learning_rate(step, progress.guard.rate)
                if math.isfinite(loss) and math.isfinite(grad_norm):
                    guards.optimizer_step(trainable.optimizer_step, trainable.buffers)
                    progress.guard.bad_in_a_row = 0
                    progress.losses.append(loss)
                    state.note_items(step, found.among, of_items)
                elif state.skip_step(loss, grad_norm, rate):
                    continue  # rolled back
                state.report_step(progress.losses[-1], rate, grad_norm, time.monotonic() - step_started)

                state.after_step(controls)  # validation, advice, checkpoint, samples: once in a while
            state.save()
            state.sample()
        except Stopped:
            state.save_stopped()
            return state.result(stopped=True)
        except Exception:
            state.save()
            raise
        return state.result(stopped=False)


@contextmanager
def _device(controls: Controls) -> Iterator[ExitStack]:
    """The device, and in it a stack for the session with the model; closed, then given back, whatever happens."""
    controls.acquire_device()
    try:
        with ExitStack() as session:
            yield session
    finally:
        controls.release_device()


class _Found(NamedTuple):
    """What one step's forwards gave this process, on the device; n items."""

    loss: Tensor  # its share of the step's loss
    errors: Tensor  # (n,) fp32 of each item, without weights
    levels: Tensor  # (n,) fp32
    among: tuple[int, ...]  # n: see MicroBatch


def _gradients_with_retry(state: TrainingState, step: int, limit: float) -> _Found:
    """`_gradients`; again in smaller pieces when the device's memory runs out."""
    config = state.config.guards
    if state.config.optimizer.update_in_backward:
        # A step that ended half-way cannot be done again: some matrices have been updated
        config = replace(config, retry_out_of_memory=False)
    return guards.with_less_memory(
        lambda: _gradients(state, step, limit),
        state.progress.guard,
        config,
        largest_batch=max(map(len, state.prefetcher.batches(step))),
        clean_up=state.trainable.zero_grad,
        warn=state.warn,
    )


def _gradients(state: TrainingState, step: int, limit: float) -> _Found:
    """Add one step's gradients of this process's share.

    limit: the loss above which the step counts as a spike.
    """
    denoiser, config, guard = state.denoiser, state.config, state.progress.guard
    if guard.activation_checkpointing:
        checkpoint_blocks(denoiser.module)
    total, empty = torch.zeros((), device=denoiser.device), torch.zeros(0, device=denoiser.device)
    all_errors, levels = [empty], [empty]
    among: tuple[int, ...] = ()
    for micro_batch in state.prefetcher.get(step, guard.parts):
        state.trainable.adapter.set_step(config.seed, micro_batch.place)
        noised = micro_batch.noised
        conditioning = state.conditioning_of(micro_batch)
        for target, adapter_as_it_counts in state.targets(micro_batch):
            with adapter_as_it_counts:  # in backward too, where blocks are computed again
                prediction = denoiser.forward(noised.noisy, noised.timestep, conditioning)
                errors = objective.loss_per_item(prediction, target, micro_batch.mask, config.objective)
                loss = (errors * micro_batch.factor).sum()
                if loss.requires_grad:  # not when dropout has switched every layer off
                    state.trainable.backward(loss, limit)
            total += loss.detach()
        if micro_batch.learned:
            all_errors.append(errors.detach())
            levels.append(noised.level.float())
            among += micro_batch.among
    return _Found(total, torch.cat(all_errors), torch.cat(levels), among)
