"""One run in progress: what it works with, where it stands, and what happens once in a while."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import AdapterConfig, TrainConfig
from ..dataset.batches import BatchOrder, ItemStore, order_of
from ..dataset.encoded import EncodedDataset
from ..denoiser import Conditioning, Denoiser
from ..errors import KilnError
from ..events import (
    AdviceEvent,
    CheckpointEvent,
    Controls,
    Listener,
    MessageEvent,
    StepEvent,
    ValidationEvent,
    best_of,
)
from ..memory.placement import Placement
from ..report.curve import SmoothedLoss
from ..runs import checkpoint
from ..runs.checkpoint_list import best_checkpoint, newest_checkpoint
from ..runs.item_losses import ItemLosses
from ..runs.samples import Sampler, draw_samples
from . import guards, validation
from .advice import advise, advise_on_items
from .checks import check_given, check_resumable
from .distributed import ProcessGroup
from .loss_scale import overflowed
from .prefetch import MicroBatch, Prefetcher
from .progress import Progress, TrainResult
from .slider import slider_targets
from .text import TrainedText, check_text_gradient
from .trainable import Trainable

log = logging.getLogger(__name__)

ADVISE_EVERY = 100  # steps between looks at the training curve where there is no validation


@dataclass(kw_only=True)
class TrainingState:
    """Everything `train` holds while a run goes on.

    `session` is the placement's: while it is entered the model is on the device. It is left for samples and while
    another node needs the device.
    """

    denoiser: Denoiser
    dataset: EncodedDataset
    config: TrainConfig
    run_folder: Path
    base_model: str  # the model's fingerprint
    adapter: AdapterConfig  # config's, with the layers of the checkpoint that the run goes on from
    placement: Placement
    session: ExitStack
    group: ProcessGroup
    sampler: Sampler | None
    emit: Listener
    text: TrainedText | None = None  # where the text encoder is trained too
    started: float = field(default_factory=time.monotonic)
    smoothed: SmoothedLoss = field(default_factory=SmoothedLoss)
    first_step: bool = True  # of this session of the run
    stopped_early: bool = False  # by the validation loss
    # Made by set_up
    trainable: Trainable = field(init=False)
    progress: Progress = field(init=False)
    order: BatchOrder = field(init=False)
    prefetcher: Prefetcher = field(init=False)
    held_out: ItemStore = field(init=False)  # the validation items

    def set_up(self, start_from: dict[str, Tensor] | None, resume_from: Path | None) -> None:
        """Bring the model to the device and make what trains it, fresh or as a checkpoint has it.

        Args and errors: see trainer.loop.train.train.
        """
        config, dataset = self.config, self.dataset
        self.enter_session()
        if self.placement.note:
            log.info("%s", self.placement.note)
            self.emit(MessageEvent(text=self.placement.note))
        adapting = replace(config, adapter=self.adapter)
        self.trainable = Trainable(self.denoiser, adapting, self.placement.weights, start_from, self.text)
        items = [i for i in dataset.items if i.role != "validation"]
        self.progress = Progress(items=ItemLosses.of(len(items)))
        if resume_from is not None:
            check_resumable(resume_from, dataset, self.base_model, config, self.group.size)
            self.progress.restore(self.trainable.restore(resume_from))
        for loss in self.progress.losses:
            self.smoothed.add(loss)
        self.order = order_of(items, config.batch_size * self.group.size, config.seed)
        store = ItemStore(items, config.seed)
        self.prefetcher = Prefetcher(
            self.denoiser, config, self.order, store, self.group, keeps_items=self.text is not None
        )
        self.held_out = ItemStore([i for i in dataset.items if i.role == "validation"], config.seed)
        if self.denoiser.dtype == torch.float16:
            self.emit(MessageEvent(text="The model computes in fp16: the loss is scaled for its gradients."))
        if self.placement.compiles and self.progress.step < config.steps:
            self.emit(
                MessageEvent(text="Compiling the blocks in the first step; this takes a minute or more ...")
            )

    def targets(self, micro_batch: MicroBatch) -> list[tuple[Tensor, AbstractContextManager[None]]]:
        """What a micro-batch's prediction is held against, (B, C, [F,] H, W), and how the adapter counts meanwhile.

        Of items that are learned the flow or the noise. Else what the frozen model predicts: the adapter's layers step
        aside for that forward, so there is no second copy of the model.

        Differential output preservation is ai-toolkit's `diff_output_preservation`; distilling what a network said
        before it was trained further is Li & Hoiem 2016 (arXiv 1606.09282). For sliders see slider.py.
        """
        noised, adapter = micro_batch.noised, self.trainable.adapter
        if micro_batch.slider is not None:
            with adapter.switched_off():
                up, down = slider_targets(self.denoiser, noised, micro_batch.conditioning, micro_batch.slider)
            return [(up, nullcontext()), (down, adapter.reversed())]
        if not micro_batch.preserves:
            return [(noised.target, nullcontext())]
        with torch.no_grad(), adapter.switched_off():
            frozen = self.denoiser.forward(noised.noisy, noised.timestep, micro_batch.conditioning)
        return [(frozen, nullcontext())]

    # Telling the user

    def warn(self, text: str) -> None:
        """A sentence for the user, also in the log."""
        log.warning("%s", text)
        self.emit(MessageEvent(text=text))

    def warn_of_layers_without_gradient(self) -> None:
        """After the first backward of this session: name the layers that it did not reach."""
        if not self.first_step or self.config.optimizer.update_in_backward:  # which has no gradients any more
            return
        names = self.trainable.adapter.layers_without_gradient()
        if names and self.group.is_main:
            more = ", ..." if len(names) > 3 else ""
            self.warn(
                f"{len(names)} layers got no gradient in the first step ({', '.join(names[:3])}{more}): the model or "
                "these items do not use them, or another node's patch goes past them. Those that never get one are not "
                "saved."
            )

    def report_step(self, loss: float, rate: float, grad_norm: float, seconds: float) -> None:
        """loss: nan where the step was skipped. rate: learning rate. seconds: that the step took."""
        config, step = self.config, self.progress.step
        self.emit(
            StepEvent(
                step=step,
                total=config.steps,
                loss=loss,
                smoothed_loss=self.smoothed.add(loss),
                learning_rate=rate,
                grad_norm=grad_norm,
                seconds=seconds,
                epoch=step * config.optimizer.gradient_accumulation / self.order.batches_per_epoch,
            )
        )
        if not self.first_step:
            return
        self.first_step = False
        if warning := self.placement.uncalled_blocks_warning():
            self.warn(warning)
        if self.placement.compiles:
            self.emit(MessageEvent(text=f"Compiled; the first step took {seconds:.0f} s."))

    def note_items(self, step: int, among: Sequence[int], values: Sequence[float]) -> None:
        """Keep what a step has shown of its items.

        Args:
            among: which of the step's sample draws this process has computed.
            values: their losses, then their noise levels.
        """
        if self.dataset.slider:  # its items are not what is learned
            return
        draws = [draw for batch in self.prefetcher.batches(step) for draw in batch]
        if self.group.size > 1:
            of_all = torch.zeros(2, len(draws))
            of_all[:, list(among)] = torch.tensor(values).reshape(2, -1)
            among, values = range(len(draws)), self.group.all_reduce(of_all).flatten().tolist()
        for place, loss, level in zip(among, values[: len(among)], values[len(among) :], strict=True):
            self.progress.items.add(draws[place].item, level, loss)

    # The conditioning

    def conditioning_of(self, micro_batch: MicroBatch) -> Conditioning:
        """As it was encoded, or encoded now by the text encoder that is trained."""
        if self.text is None:
            return micro_batch.conditioning
        noisy = micro_batch.noised.noisy
        return self.text.conditioning(self.denoiser, micro_batch.items, noisy, self.config.objective)

    # The device

    def enter_session(self) -> None:
        self.session.enter_context(self.placement.session())
        if self.text is not None:
            self.session.enter_context(self.text.encoder.session())

    def at_step_boundary(self, controls: Controls) -> None:
        """Give the device away while another node wants it.

        Raises:
            Stopped: the run was told to stop.
        """
        if self.group.size > 1:  # all stop together, or those who go on would wait for the others for ever
            self.group.stop_together(controls.stop_requested)
        else:
            controls.yield_device(self.session.close, self.enter_session)

    # When the loss or its gradient is not finite

    def overflowed(self, loss: float, grad_norm: float) -> bool:
        """Adjust the loss scale of an fp16 model; True when the step is to be computed again at a smaller one."""
        guard = self.progress.guard
        if self.denoiser.dtype != torch.float16 or not overflowed(guard, loss, grad_norm):
            return False
        log.info("fp16 gradients overflowed: loss scale %g from now on", guard.loss_scale)
        # With update_in_backward some matrices have been updated already: the step counts as skipped
        if self.config.optimizer.update_in_backward:
            return False
        self.trainable.zero_grad()
        return True

    def skip_step(self, loss: float, grad_norm: float, rate: float) -> bool:
        """Count the step as skipped; True when that was once too often and the run was rolled back.

        Raises:
            KilnError: it was too often, and rolling back is not wanted or has not helped.
        """
        progress, limits = self.progress, self.config.guards
        self.trainable.zero_grad()
        progress.losses.append(math.nan)
        what = f"The loss became {loss} and its gradient {grad_norm}"
        self.warn(f"{what} at step {progress.step}: the step was skipped.")
        if not guards.note_bad_step(progress.guard, limits):
            return False
        guards.check_may_roll_back(progress.guard, limits, progress.step, rate, what)
        self._roll_back()
        self.warn(
            f"{what} too often: back at step {progress.step}, with {progress.guard.rate:g} of the learning rate from "
            "now on."
        )
        return True

    def _roll_back(self) -> None:
        """To the newest checkpoint, or to the start where there is none; the guard's counts stay."""
        self.group.barrier()
        counts = self.progress.guard
        newest = newest_checkpoint(self.run_folder)
        if newest is not None:
            self.progress.restore(self.trainable.restore(newest))
        else:
            self.trainable.reset()
            self.progress.restore(None)
        self.progress.guard = counts
        counts.note_roll_back()

    # Once in a while

    @property
    def validates(self) -> bool:
        return bool(self.config.validation.every and self.held_out.items)

    def before_first_step(self) -> None:
        """The validation loss and the samples of the model without the LoRA; early stopping of a resumed run.

        Raises:
            KilnError: an item gives the model what it makes no use of, or lacks what it needs.
        """
        check_given(self.denoiser, self.dataset.items)
        if self.text is not None:
            check_text_gradient(self.text, self.denoiser, self.dataset, self.config.objective)
        if self.validates and not self.progress.points:
            self.validate()
        self.stopped_early = validation.is_over(self.progress.points, self.config.validation.patience)
        if self.config.sample.at_start and not self.progress.step:
            self.sample()

    def after_step(self, controls: Controls) -> None:
        """Whatever is due or asked for after a step: validation, advice, checkpoint, samples."""
        config, step = self.config, self.progress.step
        last = step == config.steps
        if self.validates and (step % config.validation.every == 0 or last):
            self.validate()
            self.advise()
            self.stopped_early = validation.is_over(self.progress.points, config.validation.patience)
        elif step % ADVISE_EVERY == 0 or last:
            self.advise()
        due = config.checkpoint_every and step % config.checkpoint_every == 0
        if controls.take_save_request() or (due and not last):
            self.save()
        due = config.sample.every and step % config.sample.every == 0
        if (controls.take_sample_request() or due) and not last:
            self.sample()

    def validate(self) -> None:
        """Measure the held-out items; the best so far is saved."""
        with self.trainable.averaged_weights():
            point = validation.measure(
                self.denoiser, self.held_out, self.config, self.progress.step, self.group, self.text
            )
        self.progress.points.append(point)
        best = best_of(self.progress.points)
        self.emit(
            ValidationEvent(
                step=point.step,
                loss=point.loss,
                bands=tuple(point.bands),
                best_step=best.step if best else 0,
            )
        )
        if best is point:
            self.save()

    def advise(self) -> None:
        """Say what the curves show, when that has changed."""
        advice = self._advice()
        if advice != self.progress.advice:
            self.progress.advice = advice
            self.emit(AdviceEvent(step=self.progress.step, advice=tuple(advice)))

    def save(self) -> None:
        """Write a checkpoint. One that cannot be written is a warning: a full disk must not end a run of hours."""
        progress = self.progress
        if not progress.step or not self.group.is_main:
            return
        state = checkpoint.RunState(
            step=progress.step,
            losses=progress.losses,
            config=self.config.to_record(),
            dataset=self.dataset.fingerprint,
            base_model=self.base_model,
            processes=self.group.size,
            validation=[asdict(p) for p in progress.points],
            guard=asdict(progress.guard),
            ema_updates=self.trainable.ema_updates,
            item_losses=progress.items.to_dict(),
        )
        try:
            path = self.trainable.save(self.run_folder, state)
        except KilnError as error:
            self.warn(str(error))
        else:
            self.emit(CheckpointEvent(step=progress.step, path=path))

    def save_stopped(self) -> None:
        """A checkpoint after the run was told to stop, maybe while it had given the device away."""
        if not self.trainable.adapter.weights_loaded:
            self.enter_session()
        self.save()

    def sample(self) -> None:
        """Leave the device, let the sampler draw with the adapter as it is now, come back."""
        if self.sampler is None or not self.group.is_main:
            return
        step = self.progress.step
        self.emit(MessageEvent(text=f"drawing samples at step {step} ..."))
        adapter = self.trainable.output() if step else None
        self.session.close()
        draw_samples(self.sampler, adapter, step, self.emit, self.warn)
        self.enter_session()

    # The end

    def result(self, stopped: bool) -> TrainResult:
        """stopped: by the user.

        Raises:
            KilnError: no step had a finite loss.
        """
        progress, config = self.progress, self.config
        if not any(map(math.isfinite, progress.losses)) and not stopped:
            raise KilnError(
                f"None of the {progress.step} steps had a finite loss; check the dataset's latents and lower the "
                f"learning rate (now {config.optimizer.learning_rate:g})."
            )
        self.group.barrier()
        best = best_checkpoint(self.run_folder) if config.validation.result == "best" else None
        return TrainResult(
            adapter=self.trainable.output() if best is None else checkpoint.read_output(best),
            adapter_step=progress.step if best is None else checkpoint.read_state(best).step,
            config=config,
            losses=progress.losses,
            step=progress.step,
            seconds=time.monotonic() - self.started,
            stopped=stopped,
            stopped_early=self.stopped_early and progress.step < config.steps,
            validation=progress.points,
            advice=self._advice(),
        )

    def _advice(self) -> list[str]:
        progress = self.progress
        on_items = advise_on_items(self.prefetcher.items, progress.items)
        return advise(progress.losses, progress.points, self.config, progress.guard.skipped, on_items)
