"""A thousand runs cost no more than a few: what is opened is counted, not timed."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainer.config import AdapterConfig, TrainConfig
from trainer.errors import CannotResume
from trainer.runs import checkpoint_list
from trainer.runs.history import History
from trainer.runs.resume import LOOKED_AT, choose_checkpoint, resume_labels, why_anew

from ..toy import make_encoded

RUNS = 1000

_listeners: list[list[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir"):
        for opened in _listeners:
            opened.append(f"{event} {arguments[0]}")


sys.addaudithook(_hook)  # it cannot be taken away again; without a listener it does nothing


@contextmanager
def opens(below: Path) -> Iterator[list[str]]:
    """Every file opened and every folder listed below that folder meanwhile."""
    seen: list[str] = []
    _listeners.append(seen)
    try:
        yield seen
    finally:
        _listeners.remove(seen)
        seen[:] = [s for s in seen if str(below) in s]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand runs of two checkpoints each; every 100th of the dataset "d", the others of "other"."""
    root = tmp_path_factory.mktemp("many") / "runs"
    config = TrainConfig().to_dict()
    for number in range(RUNS):
        for step in (5, 9):
            folder = root / f"20260101-{number:06d}-aaaa" / f"step-{step:08d}"
            folder.mkdir(parents=True)
            state = {
                "step": step,
                "losses": [0.5] * step,
                "config": config,
                "dataset": "other" if number % 100 else "d",
                "base_model": "m",
                "files": {},
            }
            (folder / "state.json").write_text(json.dumps(state))
    return root


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    checkpoint_list._read.cache_clear()


def test_the_labels_open_a_file_each_and_once(runs: Path) -> None:
    with opens(runs) as seen:
        labels = resume_labels(runs)
    assert len(labels) == 30 and labels[0] == "20260101-000999-aaaa step 9"
    assert sum(s.startswith("open ") for s in seen) <= 30
    assert len(seen) <= 1 + 3 * 20 + 30
    with opens(runs) as seen:
        assert resume_labels(runs) == labels
    assert not any(s.startswith("open ") for s in seen)


def test_a_new_run_opens_nothing(runs: Path) -> None:
    with opens(runs) as seen:
        assert choose_checkpoint(runs, "new run", "d", "m", AdapterConfig()) is None
    assert seen == []


def test_latest_looks_until_one_fits_and_not_for_ever(runs: Path) -> None:
    with opens(runs) as seen:
        found = choose_checkpoint(runs, "latest", "d", "m", AdapterConfig())
    assert found is not None and found.parent.name == "20260101-000900-aaaa"
    assert sum(s.startswith("open ") for s in seen) == 100
    with opens(runs) as seen:
        assert choose_checkpoint(runs, "latest", "nobody's", "m", AdapterConfig()) is None
        sentence, _ = why_anew(runs, "nobody's", "m", AdapterConfig())
    assert sum(s.startswith("open ") for s in seen) == LOOKED_AT - 100, "the first hundred are known"
    assert f"Only the newest {LOOKED_AT} runs were compared" in sentence


def test_a_run_chosen_by_name_is_the_only_one_looked_into(runs: Path) -> None:
    with opens(runs) as seen:
        found = choose_checkpoint(runs, "20260101-000100-aaaa step 5", "d", "m", AdapterConfig())
    assert found is not None and all("000100" in s for s in seen) and len(seen) <= 3
    with opens(runs) as seen, pytest.raises(CannotResume, match="Runs that fit: 20260101-000900-aaaa"):
        choose_checkpoint(runs, "20260101-000101-aaaa", "d", "m", AdapterConfig())
    assert sum(s.startswith("open ") for s in seen) <= LOOKED_AT + 1


def test_a_state_that_changes_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "step-00000005"
    folder.mkdir(parents=True)
    for dataset in ("a", "b"):
        (tmp_path / "new.json").write_text(
            json.dumps({"config": {}, "dataset": dataset, "base_model": "m", "files": {}})
        )
        (tmp_path / "new.json").replace(folder / "state.json")
        found = checkpoint_list.read_summary(folder)
        assert found is not None and found.dataset == dataset


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 1}', "[" * 100_000, '{"files": {"a": {"bytes": "x"}}}']
)
def test_a_state_that_is_none_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run" / "step-00000005"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(text)
    assert resume_labels(tmp_path) == [] and checkpoint_list.best_checkpoint(tmp_path / "run") is None


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """The history of a thousand runs."""
    path = tmp_path / "history.db"
    history = History(path)
    history.start("a", tmp_path, TrainConfig().to_dict(), make_encoded(tmp_path), "m")
    with history._transaction() as db:
        columns = "folder, config, dataset, items, held_out, base_model"
        for number in range(RUNS):
            db.execute(
                f"INSERT INTO runs (id, started, updated, status, {columns}, rating) "
                f"SELECT ?, ?, 0, 'done', {columns}, ? FROM runs WHERE id = 'a'",
                (f"run{number:04d}", float(number), number % 6),
            )
            db.execute(
                "INSERT INTO points VALUES (?, 'loss', 1, ?)", (f"run{number:04d}", (number * 7) % 1000)
            )
    history.forget("a")
    history.close()
    return path


def statements(history: History) -> list[str]:
    seen: list[str] = []
    history._db.set_trace_callback(seen.append)
    return seen


def test_opening_the_history_writes_nothing(many: Path) -> None:
    before = many.read_bytes()
    writer = sqlite3.connect(many, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")  # whoever wants to write has to wait
    try:
        history = History(many)
        assert history.record("run0003") is not None
        history.close()
    finally:
        writer.execute("ROLLBACK")
        writer.close()
    assert many.read_bytes() == before


def test_one_run_is_found_without_the_others(many: Path) -> None:
    history = History(many)
    seen = statements(history)
    record = history.record("run0500")
    assert record is not None and record.loss == (500 * 7) % 1000
    assert len(seen) == 1 and "WHERE id IN ('run0500')" in seen[0]


def test_a_page_computes_the_figures_of_its_runs_only(many: Path) -> None:
    history = History(many)
    seen = statements(history)
    records, total = history.page(offset=10, limit=3)
    assert total == RUNS and [r.id for r in records] == ["run0989", "run0988", "run0987"]
    (with_figures,) = [s for s in seen if "AS loss" in s]
    assert with_figures.count("run0") == 3
    rated, _ = history.page(order="rating", limit=2)
    assert [r.id for r in rated] == ["run0995", "run0989"]
    lowest, _ = history.page(order="loss", limit=2)
    assert [r.loss for r in lowest] == [0.0, 1.0]
    assert [r.id for r in history.records("run0007")] == ["run0007"]
