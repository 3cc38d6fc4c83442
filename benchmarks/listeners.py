"""What a run's listeners cost at 20 steps a second: history, TensorBoard, progress text, all together.

    python -m benchmarks.listeners [--steps 2000]

Feeds them a run's events at once, but as if 50 ms lay between two steps (the history flushes every 40 events), and
prints the time they take as a share of the steps' time. The canvas is stood in for by the line of text it is sent.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import scripts.cpu_torchvision  # noqa: F401 - before torch's tensorboard
from trainer.config import TrainConfig
from trainer.console import step_line
from trainer.dataset.encoded import EncodedDataset
from trainer.events import Event, StepEvent, ValidationEvent
from trainer.history import FLUSH_SECONDS, History, Recorder
from trainer.tensorboard import TensorBoardListener, missing_sentence

STEP_SECONDS = 0.05


def events(steps: int) -> list[Event]:
    """A step each, a measurement every 100."""
    found: list[Event] = []
    for step in range(1, steps + 1):
        loss = 1.0 / step
        found.append(
            StepEvent(
                step=step,
                total=steps,
                loss=loss,
                smoothed_loss=loss,
                learning_rate=1e-4,
                grad_norm=1.0,
                seconds=STEP_SECONDS,
                epoch=step / 20,
            )
        )
        if step % 100 == 0:
            found.append(ValidationEvent(step=step, loss=loss, bands=(loss,) * 4, best_step=step))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    told = events(arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "history.db")
        history.start("run", Path(folder), TrainConfig().to_dict(), EncodedDataset(()), "model")
        recorder = Recorder(history, "run")
        every = round(FLUSH_SECONDS / STEP_SECONDS)

        def record(event: Event) -> None:
            recorder(event)
            if event.step % every == 0:  # type: ignore[union-attr]
                recorder.flush()

        def text(event: Event) -> None:
            if isinstance(event, StepEvent):
                step_line(event)

        listeners: dict[str, Callable[[Event], None]] = {"history": record, "text": text}
        if missing_sentence() is None:
            listeners["tensorboard"] = TensorBoardListener(Path(folder) / "board")
        total = 0.0
        for name, listener in listeners.items():
            began = time.perf_counter()
            for event in told:
                listener(event)
            spent = time.perf_counter() - began
            total += spent
            report(name, spent, arguments.steps)
        report("together", total, arguments.steps)
        history.close()


def report(name: str, seconds: float, steps: int) -> None:
    share = seconds / (steps * STEP_SECONDS)
    print(f"{name:12} {1e6 * seconds / steps:7.0f} us a step  {share:6.2%} of the time at 20 steps a second")


if __name__ == "__main__":
    main()
