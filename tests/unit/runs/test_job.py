"""A run in a thread of its own."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

from trainer.errors import KilnError
from trainer.events import Controls
from trainer.runs.job import Job, NotStarted, another_run_is_active


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
    failed.controls.request_device()  # returns at once: the run is over


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
    while not another_run_is_active():
        pass
    second.start()
    second.controls.stop()
    second.wait(60)
    with pytest.raises(NotStarted):
        second.result()
    leave.set()
    first.wait(60)
    assert first.result() and not another_run_is_active()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts a wait")
def test_a_wait_that_a_signal_interrupts_does_not_end_the_run() -> None:
    """As a second Ctrl-C does while the host closes. Thread.join then takes the running thread for an ended one."""
    go_on = threading.Event()
    job = Job(lambda controls: go_on.wait(60))
    job.start()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            job.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not job.done
    go_on.set()
    job.wait()
    assert job.done and job.result() is True
