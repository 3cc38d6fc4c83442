"""A disk that is full, or read only, at any moment of a run: it goes on and says so, or ends with nothing left behind.

The disk is a real one of a few megabytes, where the test may mount one (as root; CI's runners let sudo do it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.disks import fill, make_read_only, small_disk
from trainer.config import TrainConfig
from trainer.errors import KilnError
from trainer.events import AdviceEvent, Event, MessageEvent, SampleEvent, StepEvent, emitter
from trainer.loop.train import train
from trainer.report.tensorboard import TensorBoardListener
from trainer.runs.artifacts import delete_artifacts
from trainer.runs.checkpoint_list import find_checkpoints
from trainer.runs.history import History, Recorder
from trainer.runs.resume import continue_run
from trainer.runs.run import load_run

from ..toy import ToyDenoiser, make_config, make_encoded


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    with small_disk(tmp_path / "disk", "2m") as folder:
        yield folder


def config_of(**changes: Any) -> TrainConfig:
    return dataclasses.replace(make_config(steps=12), **{"checkpoint_every": 3, **changes})


@pytest.mark.parametrize("harm", [fill, make_read_only], ids=["full", "read only"])
@pytest.mark.parametrize("at", [1, 4, 11])
def test_training_goes_on_and_says_so(disk: Path, tmp_path: Path, harm: object, at: int) -> None:
    encoded, folder = make_encoded(tmp_path), disk / "run"
    whole = train(ToyDenoiser(), encoded, config_of(), run_folder=tmp_path / "run")
    folder.mkdir()
    said: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == at:
            harm(disk)  # type: ignore[operator]
        if isinstance(event, MessageEvent):
            said.append(event.text)

    result = train(ToyDenoiser(), encoded, config_of(), run_folder=folder, emit=listen)
    assert result.losses == whole.losses and not result.stopped
    assert any("Cannot write the checkpoint" in text for text in said)
    steps = {1: [], 4: [3], 11: [6, 9]}[at]
    assert [p.name for p in find_checkpoints(folder)] == [f"step-{step:08d}" for step in steps]
    left = {p.name for p in folder.iterdir()} - {"manifest.json"}
    assert all(name.startswith("step-") for name in left)


def test_the_history_is_written_later(disk: Path, tmp_path: Path) -> None:
    history = History(disk / "history.db")
    history.start("a", disk / "a", TrainConfig().to_dict(), make_encoded(tmp_path), "m")
    warned: list[str] = []
    recorder = Recorder(history, "a", warned.append)
    ballast = fill(disk)
    for number in range(1, 2001):
        recorder(_step(number))
    for _ in range(3):
        recorder.flush()
    recorder(AdviceEvent(step=2000, advice=("Overfitting: much.",)))
    recorder(SampleEvent(step=2000, place=0, prompt="a", path=tmp_path / "a.png", animated=False))
    assert len(warned) == 1 and "cannot be written" in warned[0] and "free some disk space" in warned[0]
    assert history.curve("a") == []
    ballast.unlink()
    recorder.flush()
    assert len(history.curve("a")) == 2000 and len(history.samples("a")) == 1
    record = history.record("a")
    assert record is not None and record.advice == ["Overfitting: much."]
    history.close()


def _step(number: int) -> StepEvent:
    return StepEvent(
        step=number,
        total=2000,
        loss=0.5,
        smoothed_loss=0.5,
        learning_rate=1e-4,
        grad_norm=1.0,
        seconds=0.1,
        epoch=1.0,
    )


@pytest.mark.parametrize("killed", [False, True])
def test_on_a_full_disk_runs_are_listed_and_deleted(disk: Path, tmp_path: Path, killed: bool) -> None:
    path, folder = disk / "history.db", disk / "a"
    history = History(path)
    history.start("a", folder, TrainConfig().to_dict(), make_encoded(tmp_path), "m")
    history.rate("a", 4)
    folder.mkdir()
    (folder / "lora.safetensors").write_bytes(b"x" * 100_000)
    if killed:  # its log stays beside it
        copies = {file: file.read_bytes() for file in disk.glob("history.db*")}
        history.close()
        for file, content in copies.items():
            file.write_bytes(content)
    else:
        history.close()
    fill(disk)
    listed = History(path)
    record = listed.record("a")
    assert record is not None and record.rating == 4
    listed.close()
    assert delete_artifacts(folder).bytes == 100_000
    again = History(path)
    again.forget("a")
    again.close()
    assert History(path).records() == [] and not folder.exists()


def test_on_a_read_only_disk_runs_are_listed(disk: Path, tmp_path: Path) -> None:
    history = History(disk / "history.db")
    history.start("a", disk / "a", TrainConfig().to_dict(), make_encoded(tmp_path), "m")
    history.close()
    (disk / "a").mkdir()
    (disk / "a" / "run.toml").write_text("")
    make_read_only(disk)
    listed = History(disk / "history.db")
    assert [r.id for r in listed.records()] == ["a"]
    with pytest.raises(KilnError, match=r"cannot be written .*permission to write there") as caught:
        listed.rate("a", 3)
    assert "move it away" not in str(caught.value)
    with pytest.raises(KilnError, match="cannot be deleted"):
        delete_artifacts(disk / "a")
    listed.close()


def test_a_failed_transaction_leaves_the_history_usable(disk: Path, tmp_path: Path) -> None:
    history = History(disk / "history.db")
    history.start("a", disk / "a", TrainConfig().to_dict(), make_encoded(tmp_path), "m")
    ballast = fill(disk)
    with pytest.raises(KilnError, match="cannot be written"):
        history.add_points("a", [("loss", step, 0.5) for step in range(5000)])
    assert history.record("a") is not None
    ballast.unlink()
    history.add_points("a", [("loss", 1, 0.5)])
    assert history.curve("a") == [(1, 0.5)]
    history.close()


def test_tensorboard_files_do_not_end_a_run(
    disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and no traceback of a thread."""
    pytest.importorskip("tensorboard")
    encoded, warned, said = make_encoded(tmp_path), list[str](), list[Event]()
    board = TensorBoardListener(disk / "board", warn=warned.append)
    fill(disk)
    writes = emitter([board, said.append])
    result = train(ToyDenoiser(), encoded, make_config(steps=300), run_folder=tmp_path / "run", emit=writes)
    board.close()
    assert len(result.losses) == 300 and len([e for e in said if isinstance(e, StepEvent)]) == 300
    assert len(warned) == 1 and "TensorBoard files are not written any more ([Errno 28]" in warned[0]
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
    with pytest.raises(OSError, match="No space left"):
        TensorBoardListener(disk / "another")


def test_a_copy_for_a_new_run_is_whole_or_not_there(disk: Path, tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    train(ToyDenoiser(), encoded, config_of(), run_folder=tmp_path / "run")
    newest = find_checkpoints(tmp_path / "run")[-1]
    fill(disk)
    with pytest.raises(KilnError, match=r"cannot be copied for a new run .*free some disk space"):
        continue_run(newest, disk / "fresh", config_of(seed=9, steps=20), encoded.fingerprint)
    assert not (disk / "fresh").exists()
    with pytest.raises(KilnError):
        load_run(disk / "fresh")
