"""TensorBoard files that TensorBoard's own reader opens; the console; and what all listeners cost together."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from trainer.events import AdviceEvent, CheckpointEvent, MessageEvent, SampleEvent, ValidationEvent
from trainer.report.console import ConsoleListener, clock
from trainer.report.tensorboard import TensorBoardListener, missing_sentence

from ..runs.test_history import step


def test_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert missing_sentence() is None
    listener = TensorBoardListener(tmp_path)
    for number in range(1, 6):
        listener(step(number, 1.0 / number))
    listener(ValidationEvent(step=5, loss=0.25, bands=(0.2, 0.3), best_step=5))
    listener(AdviceEvent(step=5, advice=("Overfitting: much.",)))
    Image.new("RGB", (8, 4), "red").save(tmp_path / "drawn.png")
    listener(SampleEvent(step=5, place=1, prompt="a red circle", path=tmp_path / "drawn.png", animated=False))
    listener.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(s.step, s.value) for s in read.Scalars("loss/train")][:2] == [(1, 1.0), (2, 0.5)]
    assert read.Scalars("loss/validation")[0].value == 0.25
    (drawn,) = read.Images("samples/1: a red circle")
    assert (drawn.step, drawn.width, drawn.height) == (5, 8, 4)
    tags = read.Tags()
    assert "advice/text_summary" in tags["tensors"]
    assert {"optimizer/learning_rate", "optimizer/gradient_norm", "validation_bands/1"} <= set(
        tags["scalars"]
    )


def test_samples_have_no_prompt_without_metadata(tmp_path: Path) -> None:
    listener = TensorBoardListener(tmp_path, prompts=False)
    Image.new("RGB", (8, 4), "red").save(tmp_path / "drawn.png")
    listener(SampleEvent(step=5, place=1, prompt="a red circle", path=tmp_path / "drawn.png", animated=False))
    listener.close()
    (events,) = tmp_path.glob("events*")
    assert b"samples/1" in events.read_bytes() and b"circle" not in events.read_bytes()


def test_without_the_package_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.report.tensorboard.importlib.util.find_spec", lambda name: None)
    assert "pip install tensorboard" in str(missing_sentence())


def test_console() -> None:
    stream = io.StringIO()
    listener = ConsoleListener(stream)
    for number in (1, 2, 100):
        listener(step(number))
    listener(ValidationEvent(step=5, loss=0.25, bands=(0.2,), best_step=5))
    listener(AdviceEvent(step=5, advice=("One.", "Two.")))
    listener(CheckpointEvent(step=5, path=Path("c")))
    listener(MessageEvent(text="Hello."))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 1/100  loss 0.5000  10.0 steps/s  0:10 left")
    assert lines[1].startswith("step 100/100")  # the second came too soon to be told
    assert lines[2:] == [
        "validation 0.2500 at step 5, best at step 5",
        "One.",
        "Two.",
        "checkpoint c",
        "Hello.",
    ]
    assert clock(3725) == "1:02:05" and clock(65.4) == "1:05"
