"""TensorBoard event files of a run, through torch's own writer: `tensorboard --logdir FOLDER` opens them.

The package tensorboard is optional: without it nothing is written, and `missing_sentence` says what to install.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from ..events import AdviceEvent, Event, SampleEvent, StepEvent, ValidationEvent


def missing_sentence() -> str | None:
    """What to tell a user who has no TensorBoard; None when it is there."""
    if importlib.util.find_spec("tensorboard") is not None:
        return None
    return (
        "TensorBoard files need the Python package tensorboard; install it with 'pip install tensorboard' into "
        "ComfyUI's Python, or switch tensorboard off."
    )


class TensorBoardListener:
    """Writes loss, validation, learning rate, gradient norm and samples under one folder."""

    def __init__(self, folder: Path, every: int = 1) -> None:
        """folder: made when missing. every: steps between points of the training curves."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._every = every

    def __call__(self, event: Event) -> None:
        add = self._writer.add_scalar
        if isinstance(event, StepEvent) and event.step % self._every == 0:
            add("loss/train", event.loss, event.step)
            add("loss/smoothed", event.smoothed_loss, event.step)
            add("optimizer/learning_rate", event.learning_rate, event.step)
            add("optimizer/gradient_norm", event.grad_norm, event.step)
        elif isinstance(event, ValidationEvent):
            add("loss/validation", event.loss, event.step)
            for band, value in enumerate(event.bands):
                add(f"validation_bands/{band}", value, event.step)
        elif isinstance(event, AdviceEvent):
            self._writer.add_text("advice", "\n\n".join(event.advice) or "none", event.step)
        elif isinstance(event, SampleEvent):
            picture = np.asarray(Image.open(event.path).convert("RGB"))  # (H, W, 3), uint8
            name = f"samples/{event.place}: {event.prompt[:60]}"
            self._writer.add_image(name, picture, event.step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
