"""The training loop, flat, in time order.

    question = noised latents at a drawn noise level    answer = model(question)    loss = (answer - target)^2

`train` runs on the calling thread and leaves the model alone when it returns, whatever happened. It stops at a step
boundary when told to, keeps what it has learned, and can go on later from its checkpoint exactly where it was:
every random draw is a function of the seed and the step (see rng.py), and whatever else a step depends on is in the
checkpoint (see checkpoint.py). A step that goes wrong is handled in guards.py.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint, guards, objective, validation
from .adapter.fused import FrozenWeights, resident_weights
from .config import MemoryConfig, TrainConfig
from .dataset.batches import BatchOrder, ItemStore
from .dataset.encoded import EncodedDataset
from .denoiser import Denoiser
from .errors import KilnError
from .events import (
    AdviceEvent,
    CheckpointEvent,
    Controls,
    Listener,
    MessageEvent,
    StepEvent,
    Stopped,
    ValidationEvent,
)
from .feed import Feed
from .fits import check_fits, check_resumable
from .guards import GuardState
from .learner import Learner
from .memory.placement import Placement
from .memory.recompute import checkpoint_blocks
from .parallel import Alone, add_up_gradients
from .progress import Progress, TrainResult
from .samples import Sampler, draw_samples
from .smoothing import SmoothedLoss

log = logging.getLogger(__name__)

ADVISE_EVERY = 100  # steps between looks at the training curve where nothing is measured


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
    team: Alone | None = None,
    sampler: Sampler | None = None,
    memory: MemoryConfig | None = None,
    model_file: Path | None = None,
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
        team: the processes that train together.
        sampler: draws with the adapter as config.sample says; nothing that happens in it changes the result.
        memory: config.memory with its level decided; without it auto is resident.
        model_file: the safetensors file that the model's weights come from, unchanged; for streaming from it.

    Raises:
        KilnError: model, dataset and settings do not match, the checkpoint does not fit, the loss stays non-finite, or
            the device's memory does not suffice. A checkpoint that cannot be written is a MessageEvent: the run goes
            on.
    """
    controls, team = controls or Controls(), team or Alone()
    check_fits(denoiser, dataset, config, team.size)
    items = [i for i in dataset.items if i.role != "validation"]
    order = BatchOrder(
        [i.shape for i in items], [i.repeats for i in items], config.batch_size * team.size, config.seed
    )
    store = ItemStore(items, config.seed)
    held_out = ItemStore([i for i in dataset.items if i.role == "validation"], config.seed)
    feed = Feed(denoiser, config, order, store, team)
    accumulation = config.optimizer.gradient_accumulation
    guarding = config.guards
    if config.optimizer.update_in_backward:
        # A step that ended half-way cannot be done again: some matrices have moved
        guarding = replace(guarding, retry_out_of_memory=False)
    started = time.monotonic()

    with ExitStack() as ending, ExitStack() as session:
        controls.take_device()
        ending.callback(controls.give_device)  # after the session is closed
        placement = Placement(denoiser, memory or config.memory, config.adapter, weights, model_file)
        session.enter_context(placement.session())
        if placement.note:
            log.info("%s", placement.note)
            emit(MessageEvent(text=placement.note))
        learner = Learner(denoiser, config, placement.weights, start_from)
        progress = Progress()
        if resume_from is not None:
            check_resumable(resume_from, dataset, base_model, config, team.size)
            progress.put_back(learner.restore(resume_from))
        smoothed = SmoothedLoss()
        for loss_then in progress.losses:
            smoothed.add(loss_then)
        stopped = stopped_early = False
        first = True  # step of this session of the run
        if placement.compiles:
            emit(MessageEvent(text="Compiling the blocks in the first step; this takes a minute or more ..."))

        def say(text: str) -> None:
            log.warning("%s", text)
            emit(MessageEvent(text=text))

        def save() -> None:
            if not progress.step or not team.is_main:
                return
            state = checkpoint.RunState(
                step=progress.step,
                losses=progress.losses,
                config=config.to_dict(),
                dataset=dataset.fingerprint,
                base_model=base_model,
                processes=team.size,
                validation=[asdict(p) for p in progress.points],
                guard=asdict(progress.guard),
                ema_updates=learner.ema_updates,
            )
            try:
                path = learner.save(run_folder, state)
            except KilnError as error:  # a full disk must not end a run of hours: older checkpoints are there
                say(str(error))
            else:
                emit(CheckpointEvent(step=progress.step, path=path))

        def measure() -> None:
            """Validate, keep the best, say what the curves say."""
            with learner.as_used():
                point = validation.measure(denoiser, held_out, config, progress.step, team)
            progress.points.append(point)
            best = validation.best_of(progress.points)
            emit(
                ValidationEvent(
                    step=point.step,
                    loss=point.loss,
                    bands=tuple(point.bands),
                    best_step=best.step if best else 0,
                )
            )
            if best is point:
                save()

        def draw() -> None:
            """Leave the device, let the sampler draw with what is learned so far, come back."""
            if sampler is None or not team.is_main:
                return
            emit(MessageEvent(text=f"drawing samples at step {progress.step} ..."))
            learned = learner.output() if progress.step else None
            session.close()
            draw_samples(sampler, learned, progress.step, emit, say)
            session.enter_context(placement.session())

        def look_at_curves() -> None:
            advice = validation.advise(progress.losses, progress.points, config, progress.guard.skipped)
            if advice != progress.advice:
                progress.advice = advice
                emit(AdviceEvent(step=progress.step, advice=tuple(advice)))

        measures = bool(config.validation.every and held_out.items)
        patience = config.validation.patience
        try:
            if measures and not progress.points:
                measure()  # before training: what the model does without the LoRA
            stopped_early = validation.is_over(progress.points, patience)
            if config.sample.at_start and not progress.step:
                draw()
            while progress.step < config.steps and not stopped_early:
                _boundary(controls, team, placement, session)
                step = progress.step
                step_started = time.monotonic()

                # Gradients: the mean over all items of the step, however they are spread over batches and processes
                limit = guards.spike_limit(progress.losses, config.guards)
                learner.set_rate(step, progress.guard.rate)

                def gradients(step: int = step, limit: float = limit) -> Tensor:
                    return _gradients(denoiser, config, learner, feed, step, progress.guard, limit)

                device_loss = guards.with_less_memory(
                    gradients,
                    progress.guard,
                    guarding,
                    largest_batch=max(map(len, feed.batches(step))),
                    clean_up=learner.forget_gradients,
                    say=say,
                )
                device_loss = add_up_gradients(team, learner.buffers, device_loss)
                device_norm = learner.clip_gradients((limit / device_loss).clamp(max=1))
                if step + 1 < config.steps:
                    feed.prepare(step + 1, progress.guard.parts)
                loss, grad_norm = torch.stack([device_loss.float(), device_norm]).tolist()  # here we wait
                progress.guard.clipped_spikes += loss > limit

                # Step
                rate = learner.rate_at(step, progress.guard.rate)
                if math.isfinite(loss) and math.isfinite(grad_norm):
                    learner.move()
                    progress.guard.bad_in_a_row = 0
                    progress.losses.append(loss)
                else:
                    learner.forget_gradients()
                    progress.losses.append(math.nan)
                    what = f"The loss became {loss} and its gradient {grad_norm}"
                    say(f"{what} at step {step + 1}: the step was skipped.")
                    if guards.note_bad_step(progress.guard, config.guards):
                        guards.check_may_roll_back(progress.guard, config.guards, step + 1, rate, what)
                        _roll_back(learner, progress, run_folder, team)
                        say(
                            f"{what} too often: back at step {progress.step}, with {progress.guard.rate:g} of the "
                            "learning rate from now on."
                        )
                        continue
                emit(
                    StepEvent(
                        step=progress.step,
                        total=config.steps,
                        loss=progress.losses[-1],
                        smoothed_loss=smoothed.add(progress.losses[-1]),
                        learning_rate=rate,
                        grad_norm=grad_norm,
                        seconds=time.monotonic() - step_started,
                        epoch=progress.step * accumulation / order.batches_per_epoch,
                    )
                )

                if first and (doubt := placement.doubt()):
                    say(doubt)
                if first and placement.compiles:
                    seconds = time.monotonic() - step_started
                    emit(MessageEvent(text=f"Compiled; the first step took {seconds:.0f} s."))
                first = False

                # Once in a while
                last = progress.step == config.steps
                if measures and (progress.step % config.validation.every == 0 or last):
                    measure()
                    look_at_curves()
                    stopped_early = validation.is_over(progress.points, patience)
                elif progress.step % ADVISE_EVERY == 0 or last:
                    look_at_curves()
                due = config.checkpoint_every and progress.step % config.checkpoint_every == 0
                if controls.take_save_request() or (due and not last):
                    save()
                due = config.sample.every and progress.step % config.sample.every == 0
                if (controls.take_sample_request() or due) and not last:
                    draw()
            save()
            draw()
        except Stopped:
            stopped = True
            if not learner.adapter.has_base:  # told to stop while it had stepped aside
                session.enter_context(placement.session())
            save()
        except Exception:
            save()
            raise

        if not any(map(math.isfinite, progress.losses)) and not stopped:
            raise KilnError(
                f"None of the {progress.step} steps had a finite loss; check the dataset's latents and lower the "
                f"learning rate (now {config.optimizer.learning_rate:g})."
            )
        team.wait()
        best = checkpoint.best_checkpoint(run_folder) if config.validation.result == "best" else None
        return TrainResult(
            adapter=learner.output() if best is None else checkpoint.read_output(best),
            adapter_step=progress.step if best is None else checkpoint.read_state(best).step,
            config=config,
            losses=progress.losses,
            step=progress.step,
            seconds=time.monotonic() - started,
            stopped=stopped,
            stopped_early=stopped_early and progress.step < config.steps,
            validation=progress.points,
            advice=validation.advise(progress.losses, progress.points, config, progress.guard.skipped),
        )


def _boundary(controls: Controls, team: Alone, placement: Placement, session: ExitStack) -> None:
    """Between steps: stop when told to, and give the device away while somebody else wants it."""
    if team.size > 1:  # all stop together, or those who go on would wait for the others for ever
        if team.any(controls.stop_requested):
            raise Stopped
        return
    controls.at_boundary(session.close, lambda: session.enter_context(placement.session()))


def _gradients(
    denoiser: Denoiser,
    config: TrainConfig,
    learner: Learner,
    feed: Feed,
    step: int,
    guard: GuardState,
    limit: float,
) -> Tensor:
    """Add one step's gradients of this process's share; returns its share of the loss, on the device.

    limit: the loss above which the step counts as a spike.
    """
    if guard.activation_checkpointing:
        checkpoint_blocks(denoiser.module)
    total = torch.zeros((), device=denoiser.device)
    for portion in feed.take(step, guard.parts):
        learner.adapter.set_step(config.seed, portion.place)
        question = portion.question
        answer = denoiser.forward(question.noisy, question.timestep, portion.conditioning)
        errors = objective.loss_per_item(answer, question.target, portion.mask, config.objective)
        loss = (errors * portion.factor).sum()
        if loss.requires_grad:  # not when dropout has switched every layer off
            learner.backward(loss, limit)
        total += loss.detach()
    return total


def _roll_back(learner: Learner, progress: Progress, run_folder: Path, team: Alone) -> None:
    """To the newest checkpoint, or to the start where there is none; the guard remembers why."""
    team.wait()
    known = progress.guard
    found = checkpoint.find_checkpoints(run_folder)
    if found:
        progress.put_back(learner.restore(found[-1]))
    else:
        learner.restart()
        progress.put_back(None)
    progress.guard = known
    progress.guard.note_roll_back()
