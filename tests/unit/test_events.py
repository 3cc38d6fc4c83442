"""Listeners of a run, and what a run is told from other threads."""

from __future__ import annotations

import logging
import threading

import pytest

from trainer.events import Controls, MessageEvent, Stopped, emitter


def test_a_failing_listener_is_dropped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[object] = []

    def bad(event: object) -> None:
        raise RuntimeError("boom")

    emit = emitter([bad, seen.append])
    with caplog.at_level(logging.ERROR):
        emit(MessageEvent(text="one"))
        emit(MessageEvent(text="two"))
    assert len(seen) == 2 and len(caplog.records) == 1 and "dropped" in caplog.text


def test_returning_the_device_does_not_pass_over_somebody_who_waits_for_it() -> None:
    """Two threads that know nothing of each other: one returns what it had while another is just asking."""
    controls, got = Controls(), []
    controls.acquire_device()
    asking = threading.Thread(target=lambda: got.append(controls.request_device()))
    asking.start()
    while not controls._waiting_requests:
        pass
    controls.end_device_request()
    boundary = threading.Thread(target=lambda: controls.yield_device(lambda: None, lambda: got.append(None)))
    boundary.start()  # the run comes to its boundary: it must step aside
    asking.join(60)
    assert len(got) == 1 and controls.waits_for_device
    controls.end_device_request()
    boundary.join(60)
    assert len(got) == 2 and not controls.waits_for_device


def test_boundary_raises_when_stopped() -> None:
    controls = Controls()
    controls.acquire_device()
    controls.yield_device(lambda: None, lambda: None)
    controls.stop()
    with pytest.raises(Stopped):
        controls.yield_device(lambda: None, lambda: None)
