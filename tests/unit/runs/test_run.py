"""Checkpoints, events, jobs and the figures of a run."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainer.config import AdapterConfig, TrainConfig
from trainer.errors import KilnError
from trainer.events import Controls, MessageEvent, Stopped, emitter
from trainer.lora_files.lora_weights import LoraWeights
from trainer.report.curve import smooth
from trainer.report.plot import loss_plot, nice_ticks
from trainer.rng import derive_seed, generator
from trainer.runs.checkpoint import RunState, find_checkpoints, read_state, restore_optimizer, save_checkpoint
from trainer.runs.job import Job, NotStarted, others_run
from trainer.runs.run import Run, choose_checkpoint, resume_labels, run_folder_for


def make_state(step: int, dataset: str = "d") -> RunState:
    return RunState(
        step=step, losses=[1.0] * step, config=TrainConfig().to_dict(), dataset=dataset, base_model="m"
    )


def stepped_optimizer() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    return parameter, optimizer


def save(folder: Path, step: int, dataset: str = "d") -> Path:
    parameter, optimizer = stepped_optimizer()
    return save_checkpoint(folder, make_state(step, dataset), {"a": parameter.detach()}, optimizer)


def test_checkpoint_round_trip_and_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert [p.name for p in find_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    assert read_state(find_checkpoints(tmp_path)[-1]) == make_state(10)
    _, reference = stepped_optimizer()
    fresh = torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=0.5)
    restore_optimizer(find_checkpoints(tmp_path)[-1], fresh)
    for name, value in reference.state_dict()["state"][0].items():
        assert torch.equal(fresh.state_dict()["state"][0][name], value), name
    assert fresh.param_groups[0]["lr"] == 0.5


def test_half_written_checkpoint_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.runs.checkpoint.save_file", full)
    with pytest.raises(KilnError, match="No space left on device"):
        save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "step-00000001"]
    (tmp_path / "step-00000003").mkdir()  # a folder without its state
    assert [p.name for p in find_checkpoints(tmp_path)] == ["step-00000001"]


def test_latest_is_of_this_dataset_and_model(tmp_path: Path) -> None:
    save(tmp_path / "20260101-a", 5)
    save(tmp_path / "20260102-b", 7, dataset="other")
    found = choose_checkpoint(tmp_path, "latest", "d", "m", AdapterConfig())
    assert found is not None and found.parent.name == "20260101-a"
    assert choose_checkpoint(tmp_path, "latest", "d", "another model", AdapterConfig()) is None
    assert choose_checkpoint(tmp_path, "latest", "d", "m", AdapterConfig(rank=8)) is None
    assert choose_checkpoint(tmp_path / "nowhere", "latest", "d", "m", AdapterConfig()) is None
    assert choose_checkpoint(tmp_path, "new run", "d", "m", AdapterConfig()) is None


def test_latest_is_what_was_written_last_whatever_its_name(tmp_path: Path) -> None:
    """Runs of one second have names in no order."""
    for name in ("20260101-120000-cc", "20260101-120000-aa", "20260101-120000-bb"):
        save(tmp_path / name, 5)
        found = choose_checkpoint(tmp_path, "latest", "d", "m", AdapterConfig())
        assert found is not None and found.parent.name == name
    save(tmp_path / "20260101-120000-aa", 9)  # resumed
    labels = [label.removeprefix("20260101-120000-") for label in resume_labels(tmp_path)]
    assert labels == ["aa step 9", "aa step 5", "bb step 5", "cc step 5"]
    assert len(resume_labels(tmp_path, limit=3)) == 3


def test_a_run_or_a_step_can_be_chosen(tmp_path: Path) -> None:
    for step in (5, 9):
        save(tmp_path / "20260101-a", step)
    save(tmp_path / "20260102-b", 7, dataset="other")
    labels = ["20260102-b step 7", "20260101-a step 9", "20260101-a step 5"]
    assert resume_labels(tmp_path) == labels

    def chosen(label: str) -> str:
        path = choose_checkpoint(tmp_path, label, "d", "m", AdapterConfig())
        return "" if path is None else path.name

    assert chosen("20260101-a") == chosen("20260101-a step 9 best") == "step-00000009"
    assert chosen("20260101-a step 5") == "step-00000005"
    with pytest.raises(KilnError, match=r"20260102-b cannot be resumed.*Runs that fit: 20260101-a\."):
        chosen("20260102-b step 7")
    with pytest.raises(KilnError, match="There is no checkpoint '20260101-a step 6' any more"):
        chosen("20260101-a step 6")
    with pytest.raises(KilnError, match="any more"):
        chosen("../../etc step 1")


def test_going_on_from_an_older_step_leaves_the_newer_ones_alone(tmp_path: Path) -> None:
    older, newer = save(tmp_path / "run", 5), save(tmp_path / "run", 9)
    assert run_folder_for(newer, tmp_path / "fresh") == tmp_path / "run"
    assert run_folder_for(older, tmp_path / "fresh") == tmp_path / "fresh"
    assert [p.name for p in find_checkpoints(tmp_path / "fresh")] == ["step-00000005"]


def test_a_failing_listener_is_dropped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[object] = []

    def bad(event: object) -> None:
        raise RuntimeError("boom")

    emit = emitter([bad, seen.append])
    with caplog.at_level(logging.ERROR):
        emit(MessageEvent(text="one"))
        emit(MessageEvent(text="two"))
    assert len(seen) == 2 and len(caplog.records) == 1 and "dropped" in caplog.text


def test_job_hands_over_results_and_errors_and_takes_turns() -> None:
    inside, most = [], []

    def work(controls: Controls) -> int:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return 5

    jobs = [Job(work) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.wait()
    assert [job.result() for job in jobs] == [5, 5, 5] and max(most) == 1

    def fail(controls: Controls) -> None:
        raise KilnError("no")

    failed = Job(fail)
    failed.start()
    failed.wait()
    with pytest.raises(KilnError, match="no"):
        failed.result()
    failed.controls.borrow_device()  # returns at once: the run is over


def test_job_runs_outside_inference_mode() -> None:
    with torch.inference_mode():
        job = Job(lambda controls: torch.is_inference_mode_enabled())
        job.start()
        job.wait()
    assert job.result() is False


def test_a_job_that_waits_for_its_turn_can_be_stopped() -> None:
    leave = threading.Event()
    first, second = Job(lambda controls: leave.wait(60)), Job(lambda controls: pytest.fail("it ran"))
    first.start()
    while not others_run():
        pass
    second.start()
    second.controls.stop()
    second.wait(60)
    with pytest.raises(NotStarted):
        second.result()
    leave.set()
    first.wait(60)
    assert first.result() and not others_run()


def test_returning_the_device_does_not_pass_over_somebody_who_waits_for_it() -> None:
    """Two threads that know nothing of each other: one returns what it had while another is just asking."""
    controls, got = Controls(), []
    controls.take_device()
    asking = threading.Thread(target=lambda: got.append(controls.borrow_device()))
    asking.start()
    while not controls._borrowers:
        pass
    controls.return_device()
    boundary = threading.Thread(target=lambda: controls.at_boundary(lambda: None, lambda: got.append(None)))
    boundary.start()  # the run comes to its boundary: it must step aside
    asking.join(60)
    assert len(got) == 1 and controls.aside
    controls.return_device()
    boundary.join(60)
    assert len(got) == 2 and not controls.aside


def test_boundary_raises_when_stopped() -> None:
    controls = Controls()
    controls.take_device()
    controls.at_boundary(lambda: None, lambda: None)
    controls.stop()
    with pytest.raises(Stopped):
        controls.at_boundary(lambda: None, lambda: None)


def test_draws_depend_on_everything_they_are_for() -> None:
    seeds = {
        derive_seed(s, p, *c) for s in (0, 1, 2**64 - 1) for p in ("a", "b") for c in ((), (0,), (1,), (0, 1))
    }
    assert len(seeds) == 24 and all(0 <= s < 2**63 for s in seeds)
    assert torch.equal(
        torch.rand(3, generator=generator(1, "x", 2)), torch.rand(3, generator=generator(1, "x", 2))
    )


def test_smoothing() -> None:
    assert smooth([3.0]) == pytest.approx([3.0])
    assert smooth([2.0] * 100)[-1] == pytest.approx(2.0)
    assert smooth([0.0] * 50 + [1.0] * 50)[-1] == pytest.approx(0.85, abs=0.03)


def make_run(losses: list[float]) -> Run:
    return Run(
        run_id="r",
        folder=Path("r"),
        config=TrainConfig(),
        lora=LoraWeights({"a": torch.zeros(1000)}),
        losses=losses,
        seconds=12.3,
        stopped=False,
        trained_parameters=1000,
        model_parameters=100_000,
    )


def test_run_summary() -> None:
    assert make_run([2.0] * 60 + [1.0] * 60).sentence() == (
        "done: 120 steps in 12 s, loss 2.000 -> 1.000; 1.0 % of the model's parameters, 0.0 MB"
    )


@pytest.mark.parametrize(
    "losses", [[0.5], [0.5, 0.5, 0.5], list(np.geomspace(1, 1e-3, 500)), [1e-12, 5.0, 1e5]]
)
def test_plot_of_any_curve(losses: list[float]) -> None:
    picture = loss_plot(losses, smooth(losses), "title")
    assert picture.shape == (540, 960, 3) and 0 <= picture.min() < 0.5 and picture.max() == 1.0


def test_plot_with_validation_and_notes() -> None:
    losses = [1.0, float("nan"), 0.5]
    plain = loss_plot(losses, smooth(losses), "title")
    told = loss_plot(
        losses, smooth(losses), "title", validation=[(0, 2.0), (2, 1.5)], notes=["A sentence. " * 30]
    )
    assert told.shape[0] > plain.shape[0] and not np.array_equal(told[:540], plain)


def test_ticks_enclose_the_range() -> None:
    assert nice_ticks(0.13, 0.87) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for low, high in ((0.0, 0.0), (5.0, 5.0), (-1.0, 1e-9), (1e-8, 1e-7)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 12
