"""Killed at four moments, resumed each time: the same LoRA. tests/kill_test.py does the same at length."""

from __future__ import annotations

from tests.kill_test import kill_test


def test_kill_and_resume() -> None:
    assert kill_test(kills=4, steps=60, seed=1)
