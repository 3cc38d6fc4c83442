"""Pictures during a run: they change nothing, come when they should, and a failing sampler ends nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer.config import MemoryConfig, SampleConfig, TrainConfig, ValidationConfig
from trainer.errors import KilnError
from trainer.events import Controls, Event, MessageEvent, SampleEvent, StepEvent, Stopped
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.report.tensorboard import TensorBoardListener
from trainer.runs.history import History, Recorder
from trainer.runs.samples import Sample, sample_path, write_sample

from ..loop.test_train import assert_same
from ..toy import ToyDenoiser, make_config, make_encoded
from .test_history import make


class Painter:
    """A Sampler whose pictures are made of the adapter; disturbs whatever a real one might."""

    def __init__(self, denoiser: ToyDenoiser, folder: Path) -> None:
        self.denoiser, self.folder = denoiser, folder
        self.seen: list[tuple[int, dict[str, Tensor] | None]] = []

    def draw(self, adapter: dict[str, Tensor] | None, step: int) -> Iterator[Sample]:
        assert not any(True for _ in self.denoiser.clone.module.text.parameters()), (
            "the run is still on the device"
        )
        self.seen.append((step, None if adapter is None else {k: t.clone() for k, t in adapter.items()}))
        torch.manual_seed(step)
        torch.randn(7)
        for place in range(2):
            path = sample_path(self.folder, step, place)
            write_sample(path, np.full((1, 8, 8, 3), 40 * place, np.uint8), 16, {})
            yield Sample(place=place, prompt=f"prompt {place}", path=path, animated=False)


def run(
    folder: Path, config: TrainConfig, painter: type[Painter] | None = Painter, **options: Any
) -> tuple[TrainResult, Painter | None]:
    denoiser = ToyDenoiser()
    made = painter(denoiser, folder / "run") if painter else None
    options = {"run_folder": folder / "run", "sampler": made, **options}
    return train(denoiser, make_encoded(folder), config, **options), made


def sampled(config: TrainConfig, every: int = 2, at_start: bool = True) -> TrainConfig:
    return dataclasses.replace(config, sample=SampleConfig(every=every, at_start=at_start))


@pytest.mark.parametrize(("ema", "level"), [(0.0, "resident"), (0.9, "resident"), (0.0, "stream blocks")])
def test_the_lora_is_the_same_with_and_without(tmp_path: Path, ema: float, level: str) -> None:
    config = make_config(steps=7, dropout=0.3, ema_decay=ema)
    config = dataclasses.replace(config, memory=MemoryConfig(level=level))
    plain, _ = run(tmp_path / "a", sampled(config), painter=None)
    drawn, painter = run(tmp_path / "b", sampled(config))
    assert drawn.losses == plain.losses
    assert_same(drawn.adapter, plain.adapter)
    assert painter is not None
    assert [step for step, _ in painter.seen] == [0, 2, 4, 6, 7]
    assert painter.seen[0][1] is None, "step 0 is the model without the LoRA"
    assert painter.seen[-1][1] is not None
    assert_same(painter.seen[-1][1], plain.adapter)  # with a running mean: its weights, as they are saved


def test_only_when_asked(tmp_path: Path) -> None:
    controls = Controls()

    def ask(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == 3:
            controls.request_sample()

    config = sampled(make_config(steps=6), every=0, at_start=False)
    _, painter = run(tmp_path, config, controls=controls, emit=ask)
    assert painter is not None and [step for step, _ in painter.seen] == [3, 6]


def test_a_resumed_run_does_not_draw_step_0_again(tmp_path: Path) -> None:
    config = sampled(make_config(steps=4))
    run(tmp_path, config)
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    more = dataclasses.replace(config, steps=6)
    _, painter = run(tmp_path, more, resume_from=checkpoint)
    assert painter is not None and [step for step, _ in painter.seen] == [6]


class Failing(Painter):
    def draw(self, adapter: dict[str, Tensor] | None, step: int) -> Iterator[Sample]:
        found = list(super().draw(adapter, step))
        yield found[0]
        if step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate.\nMuch more text.")
        raise ValueError


def test_a_failing_sampler_ends_nothing(tmp_path: Path) -> None:
    config = make_config(steps=4)
    plain, _ = run(tmp_path / "a", config, painter=None)
    seen: list[Event] = []
    drawn, _ = run(tmp_path / "b", sampled(config), Failing, emit=seen.append)
    assert_same(drawn.adapter, plain.adapter)
    texts = [e.text for e in seen if isinstance(e, MessageEvent) and not e.text.startswith("drawing")]
    assert texts[0].startswith("No samples at step 0 (ValueError); training goes on.")
    assert texts[1].startswith("No samples at step 2 (CUDA out of memory. Tried to allocate); training")
    assert [(e.step, e.place) for e in seen if isinstance(e, SampleEvent)] == [(0, 0), (2, 0), (4, 0)]


class StopsAt2(Painter):
    def draw(self, adapter: dict[str, Tensor] | None, step: int) -> Iterator[Sample]:
        if step == 2:
            raise Stopped
        yield from super().draw(adapter, step)


@pytest.mark.parametrize("kind", ["lora", "dora"])  # dora's state needs the frozen weights
def test_stopped_while_drawing_saves_a_checkpoint(tmp_path: Path, kind: str) -> None:
    config = sampled(make_config(steps=4))
    config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, kind=kind))
    stopped, _ = run(tmp_path, config, StopsAt2)
    assert stopped.stopped and stopped.step == 2
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    rest, _ = run(tmp_path, config, resume_from=checkpoint)
    whole, _ = run(tmp_path / "whole", config, painter=None)
    assert_same(rest.adapter, whole.adapter)


def test_measured_and_drawn_at_the_same_step(tmp_path: Path) -> None:
    config = dataclasses.replace(sampled(make_config(steps=4)), validation=ValidationConfig(every=2))
    plain, _ = run(tmp_path / "a", config, painter=None)
    drawn, _ = run(tmp_path / "b", config)
    assert drawn.validation == plain.validation and drawn.losses == plain.losses


def test_files_bring_the_graph_back(tmp_path: Path) -> None:
    frames = np.zeros((5, 16, 24, 3), np.uint8)
    frames[:] = 20 * np.arange(5, dtype=np.uint8)[:, None, None, None]
    graph = {"workflow": {"nodes": [], "name": "\u7a91"}, "prompt": {"1": {"class_type": "X"}}, "else": 1}
    path = sample_path(tmp_path, 250, 3)
    assert path.name == "00000250-03.png" and write_sample(path, frames, 10, graph)
    with Image.open(path) as still:
        assert still.size == (24, 16) and still.getpixel((0, 0)) == (40, 40, 40), "the middle frame"
        assert json.loads(still.text["workflow"]) == graph["workflow"]  # type: ignore[attr-defined]
        assert json.loads(still.text["prompt"]) == graph["prompt"]  # type: ignore[attr-defined]
    with Image.open(path.with_suffix(".webp")) as moving:
        moving.load()
        assert moving.n_frames == 5 and moving.info["duration"] == 100  # type: ignore[attr-defined]
        exif = moving.getexif()
        assert exif[0x010F] == "workflow:" + json.dumps(graph["workflow"])
        assert exif[0x0110] == "prompt:" + json.dumps(graph["prompt"])
    assert not write_sample(sample_path(tmp_path, 251, 0), frames[:1], 10, {})
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "00000250-03.png",
        "00000250-03.webp",
        "00000251-00.png",
    ]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.safefile.os.fsync", full)
    with pytest.raises(KilnError, match="No space left on device"):
        write_sample(sample_path(tmp_path, 1, 0), np.zeros((1, 8, 8, 3), np.uint8), 16, {})
    assert list((tmp_path / "samples").iterdir()) == []


def test_history_and_tensorboard_hear_of_samples(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history: History = make(tmp_path, "a")
    board = TensorBoardListener(tmp_path / "board")
    recorder = Recorder(history, "a")

    def tell(event: Event) -> None:
        recorder(event)
        board(event)

    for _ in range(2):  # the second run rolls back and draws again: no picture is listed twice
        run(tmp_path, sampled(make_config(steps=2)), emit=tell)
    board.close()
    paths = [sample_path(tmp_path / "run", step, place) for step in (0, 2) for place in (0, 1)]
    expected = [(0, "prompt 0"), (0, "prompt 1"), (2, "prompt 0"), (2, "prompt 1")]
    assert history.samples("a") == [(*e, p) for e, p in zip(expected, paths, strict=True)]
    read = EventAccumulator(str(tmp_path / "board")).Reload()
    assert read.Tags()["images"] == ["samples/0: prompt 0", "samples/1: prompt 1"]


def test_prompts_and_seeds() -> None:
    config = SampleConfig(prompts=" a cat \n\n a dog", pictures=2, sample_seed=2**64 - 1)
    assert config.each() == [("a cat", 2**64 - 1), ("a cat", 0), ("a dog", 2**64 - 1), ("a dog", 0)]
    with pytest.raises(KilnError, match="width is 8; it must lie between 16"):
        SampleConfig(width=8)
