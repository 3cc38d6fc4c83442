"""TensorBoard event files of a run, of torch's own summaries: `tensorboard --logdir FOLDER` opens them.

The package tensorboard is optional: without it nothing is written, and `missing_sentence` says what to install.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..events import AdviceEvent, Event, SampleEvent, StepEvent, ValidationEvent

log = logging.getLogger(__name__)
_NUMBERS = itertools.count()  # of the files of this process


def missing_sentence() -> str | None:
    """What to tell a user who has no TensorBoard; None when it is there."""
    if importlib.util.find_spec("tensorboard") is not None:
        return None
    return (
        "TensorBoard files need the Python package tensorboard; install it with 'pip install tensorboard' into "
        "ComfyUI's Python, or switch tensorboard off."
    )


class TensorBoardListener:
    """Writes loss, validation, learning rate, gradient norm and samples under one folder.

    torch's SummaryWriter writes on a thread of its own, which prints a traceback where the disk is full; its summaries
    are written here at once instead: some 300 bytes a step.
    """

    def __init__(
        self,
        folder: Path,
        every: int = 1,
        warn: Callable[[str], None] = log.warning,
        prompts: bool = True,
    ) -> None:
        """
        Args:
            folder: made when missing.
            every: steps between points of the training curves.
            warn: told, once, that nothing is written any more, and why.
            prompts: whether samples are named by them.

        Raises:
            OSError: the file cannot be made.
        """
        from tensorboard.compat.proto.event_pb2 import Event as Record

        self._every, self.warn, self._record, self._works = every, warn, Record, True
        self._prompts = prompts
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010}.{os.getpid()}.{next(_NUMBERS)}"
        self._file = (folder / name).open("wb", buffering=0)
        try:
            self._write(Record(wall_time=time.time(), file_version="brain.Event:2"))
        except OSError:
            self._file.close()
            raise

    def __call__(self, event: Event) -> None:
        if not self._works:
            return
        try:
            for summary in self._summaries(event):
                step = getattr(event, "step", 0)
                self._write(self._record(wall_time=time.time(), step=step, summary=summary))
        except Exception as error:
            self._works = False
            if not isinstance(error, OSError):
                log.exception("Writing TensorBoard files failed")
            self.warn(f"TensorBoard files are not written any more ({error}); training goes on without them.")

    def _summaries(self, event: Event) -> Iterator[Any]:
        from torch.utils.tensorboard.summary import image, scalar, text

        if isinstance(event, StepEvent) and event.step % self._every == 0:
            yield scalar("loss/train", event.loss)
            yield scalar("loss/smoothed", event.smoothed_loss)
            yield scalar("optimizer/learning_rate", event.learning_rate)
            yield scalar("optimizer/gradient_norm", event.grad_norm)
        elif isinstance(event, ValidationEvent):
            yield scalar("loss/validation", event.loss)
            for band, value in enumerate(event.bands):
                yield scalar(f"validation_bands/{band}", value)
        elif isinstance(event, AdviceEvent):
            yield text("advice", "\n\n".join(event.advice) or "none")
        elif isinstance(event, SampleEvent):
            picture = np.asarray(Image.open(event.path).convert("RGB"))  # (H, W, 3), uint8
            name = f"{event.place}: {event.prompt[:60]}" if self._prompts else str(event.place)
            yield image(f"samples/{name}", picture, dataformats="HWC")

    def _write(self, record: Any) -> None:
        """One record of TensorBoard's format. Raises OSError."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        packed = io.BytesIO()
        RecordWriter(packed).write(record.SerializeToString())
        rest = memoryview(packed.getvalue())
        while rest:  # a file without buffer may take a part
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        self._file.close()
