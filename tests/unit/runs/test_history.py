"""The history of runs: what is written comes back, older files are brought up to date, a kill leaves a whole file."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.config import TrainConfig
from trainer.dataset.places import Places
from trainer.errors import KilnError
from trainer.events import AdviceEvent, SampleEvent, StepEvent, ValidationEvent
from trainer.runs.history import MIGRATIONS, History, Recorder, as_table

from ..toy import hold_out, make_encoded

CONFIG = TrainConfig().to_dict()


def step(number: int, loss: float = 0.5) -> StepEvent:
    return StepEvent(
        step=number,
        total=100,
        loss=loss,
        smoothed_loss=loss,
        learning_rate=1e-4,
        grad_norm=2.0,
        seconds=0.1,
        epoch=1.0,
    )


def make(folder: Path, *runs: str) -> History:
    history = History(folder / "history.db")
    for name in runs:
        history.start(name, folder / name, CONFIG, hold_out(make_encoded(folder), 1), "model")
    return history


def test_a_run_comes_back_with_everything(tmp_path: Path) -> None:
    history = make(tmp_path, "a")
    recorder = Recorder(history, "a")
    for number in range(1, 61):
        recorder(step(number, 1.0 if number <= 10 else 0.5))
    recorder(step(61, math.nan))
    recorder(ValidationEvent(step=0, loss=0.1, bands=(0.1, 0.1), best_step=0))
    recorder(ValidationEvent(step=50, loss=0.4, bands=(0.3, 0.5), best_step=50))
    recorder(AdviceEvent(step=50, advice=("Overfitting: much.",)))
    history.add_sample("a", 50, "a red circle", tmp_path / "p.png")
    history.end("a", "done", seconds=12.5, files=[tmp_path / "lora.safetensors"])
    history.rate("a", 4, "good hands")
    history.close()
    (record,) = History(tmp_path / "history.db").records()
    assert (record.status, record.step, record.items, record.held_out) == ("done", 61, 3, 1)
    assert (record.best_loss, record.best_step, record.rating, record.notes) == (0.4, 50, 4, "good hands")
    assert record.config == CONFIG and record.files == [str(tmp_path / "lora.safetensors")]
    assert record.advice == ["Overfitting: much."] and record.seconds == 12.5 and record.loss == 0.5
    again = History(tmp_path / "history.db")
    curve = again.curve("a")
    assert curve[0] == (1, 1.0) and len(curve) == 61 and math.isnan(curve[-1][1])
    assert again.curve("a", "band 1") == [(0, 0.1), (50, 0.5)] and again.curve("a", "grad_norm")[3] == (
        4,
        2.0,
    )
    assert again.samples("a") == [(50, "a red circle", tmp_path / "p.png")]


def test_files_are_named_below_the_hosts_folders_and_whole_paths_are_still_read(tmp_path: Path) -> None:
    picture, lora = tmp_path / "user" / "a" / "p-00.png", tmp_path / "user" / "a" / "lora.safetensors"
    old = make(tmp_path / "user", "a", "b")  # without places, as versions before wrote it
    old.add_sample("b", 3, "a red circle", picture)
    old.end("b", "done", files=[lora])
    old.close()
    places = Places({"user": tmp_path / "user", "": tmp_path})
    history = History(tmp_path / "user" / "history.db", places)
    for name in ("a", "b"):  # b goes on
        history.start(name, tmp_path / "user" / name, CONFIG, make_encoded(tmp_path), "model")
    history.add_sample("a", 3, "a red circle", picture)
    history.end("a", "done", files=[lora])
    assert history.samples("a") == history.samples("b") == [(3, "a red circle", picture)]
    assert [r.folder for r in history.records()] == [tmp_path / "user" / name for name in ("b", "a")]
    history.add_sample("b", 3, "a blue one", picture)
    assert history.samples("b") == [(3, "a blue one", picture)]
    history.end("b", "done", files=[lora])
    assert history.records()[0].files == ["user/a/lora.safetensors"]
    with sqlite3.connect(tmp_path / "user" / "history.db") as db:
        rows = [
            repr(tuple(row)) for name in ("runs", "samples") for row in db.execute(f"SELECT * FROM {name}")
        ]
    assert len(rows) == 4 and not any(str(tmp_path) in row for row in rows)


def test_prompts_of_samples_are_kept_only_with_metadata(tmp_path: Path) -> None:
    history = make(tmp_path, "a", "b")
    drawn = SampleEvent(step=3, place=0, prompt="a red circle", path=tmp_path / "p.png", animated=False)
    for name, prompts in (("a", True), ("b", False)):
        Recorder(history, name, prompts=prompts)(drawn)
    assert [history.samples(name)[0][1] for name in ("a", "b")] == ["a red circle", ""]


def test_filter_and_order(tmp_path: Path) -> None:
    history = make(tmp_path, "a", "b", "c")
    history.add_points("a", [("validation", 10, 0.3)])
    history.add_points("b", [("validation", 10, 0.2)])
    history.rate("c", 5, "the best Style")
    history.end("b", "done")
    assert [r.id for r in history.records()] == ["c", "b", "a"]
    assert history.records(order="rating")[0].id == "c"
    assert [r.id for r in history.records(order="validation")] == ["b", "a", "c"]
    assert [r.id for r in history.records("style best")] == ["c"] and not history.records("style done")
    assert history.records(dataset="other") == []
    table = as_table(history.records())
    assert "0.2000 at 10" in table and "*****" in table and len(table.splitlines()) == 4
    with pytest.raises(KilnError, match="holds no run 'x'"):
        history.rate("x", 3)


def test_going_on_keeps_rating_and_curve(tmp_path: Path) -> None:
    history = make(tmp_path, "a")
    history.add_points("a", [("loss", 1, 0.5), ("loss", 2, 0.5)])
    history.rate("a", 3)
    history.end("a", "stopped", seconds=5)
    history.start("a", tmp_path / "a", CONFIG, make_encoded(tmp_path), "model")
    history.add_points("a", [("loss", 2, 0.4)])
    history.end("a", "done", seconds=6)
    (record,) = history.records()
    assert record.rating == 3 and record.seconds == 11 and history.curve("a") == [(1, 0.5), (2, 0.4)]


def test_the_end_of_a_run_that_was_killed_is_written_once(tmp_path: Path) -> None:
    history = make(tmp_path, "a", "b")
    history.add_points("a", [("loss", 1, 0.5)])
    history.end("b", "failed", message="why")
    for run in ("a", "b"):
        for _ in range(2):
            history.end_killed(run, "done", [0.5, math.nan, 0.3], seconds=2.0, files=[tmp_path / run / "l"])
    killed, failed = (history.record(run) for run in ("a", "b"))
    assert killed is not None and failed is not None
    assert (killed.status, killed.step, killed.seconds) == ("done", 3, 2.0)
    assert killed.files == [str(tmp_path / "a" / "l")]
    curve = history.curve("a")
    assert [curve[0], curve[2]] == [(1, 0.5), (3, 0.3)] and math.isnan(curve[1][1])
    assert (failed.status, failed.message, history.curve("b")) == ("failed", "why", [])


def test_the_steps_that_a_killed_process_had_not_written_count_as_done(tmp_path: Path) -> None:
    history = make(tmp_path, "a")
    history.add_points("a", [("loss", 1, 0.5)])
    history.start("a", tmp_path / "a", CONFIG, make_encoded(tmp_path), "model", losses=[0.5, 0.4])
    (record,) = history.records()
    assert record.step == 2 and history.curve("a") == [(1, 0.5), (2, 0.4)]


def test_a_run_that_fell_silent_is_lost(tmp_path: Path) -> None:
    history = make(tmp_path, "a")
    assert history.records()[0].status == "running"
    history._db.execute("UPDATE runs SET updated = ?", (time.time() - 3600,))
    assert history.records()[0].status == "lost"


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_older_files_are_brought_up_to_date(tmp_path: Path, version: int) -> None:
    path = tmp_path / "history.db"
    old = sqlite3.connect(path)
    for script in MIGRATIONS[:version]:
        old.executescript(script)
    if version:
        old.execute(
            "INSERT INTO runs (id, started, updated, status, folder, config, dataset, items, held_out, base_model) "
            "VALUES ('old', 1, 1, 'done', 'f', '{}', 'd', 1, 0, 'm')"
        )
    old.execute(f"PRAGMA user_version = {version}")
    old.commit()
    old.close()
    history = History(path)
    assert [r.id for r in history.records()] == (["old"] if version else [])
    if version:
        history.rate("old", 2)
        assert history.records()[0].rating == 2
    history.close()
    assert [r.id for r in History(path).records()] == (
        ["old"] if version else []
    )  # opening again changes nothing


def test_newer_and_damaged_files_are_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.commit()
    newer.close()
    with pytest.raises(KilnError, match="written by a newer LoRA Kiln"):
        History(path)
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database at all" * 100)
    with pytest.raises(KilnError, match=r"is damaged .* move it away"):
        History(damaged)
    assert damaged.read_bytes().startswith(b"no database")


def test_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); import scripts.cpu_torchvision\n"
        "from pathlib import Path; from trainer.runs.history import History\n"
        "h = History(Path(sys.argv[1])); n = 0\n"
        'h._db.execute("INSERT INTO runs (id, started, updated, status, folder, config, dataset, items, held_out, '
        "base_model) VALUES ('a', 1, 1, 'running', 'f', '{}', 'd', 1, 0, 'm')\")\n"
        "while True:\n"
        "    h.add_points('a', [('loss', n * 10 + i, 1.0) for i in range(10)]); n += 1; print(n, flush=True)\n"
    )
    path = tmp_path / "history.db"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    written = 0
    for line in process.stdout:
        written = int(line)
        if written >= 50:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    history = History(path)
    assert history._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    curve = history.curve("a")
    assert len(curve) >= 10 * written and len(curve) % 10 == 0
