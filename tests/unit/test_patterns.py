"""Expressions of other people's workflows: bounded in time, and other threads go on meanwhile."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import KilnError
from trainer.patterns import Pattern, compile_pattern

NAME = "transformer_blocks.59.attn.add_q_proj"
FREEZES = [r"(([a-z._0-9]+)+)+!", r"([a-z_0-9.]+)+[!?]", r"(.*)*(.*)*(.*)*(.*)*!", r"((\w+)(\w+)\.?)+\3[A-Z]"]
ENDLESS = r"(?:a|[a-z_.0-9]|[a-z]+)*\d\d\d"


@pytest.mark.parametrize("text", FREEZES)
def test_what_freezes_python_s_own_matcher(text: str) -> None:
    """Some of these it matches at once, others take too long: either ends."""
    pattern = Pattern(text, "target_modules")
    try:
        assert not any(pattern.fullmatch(NAME) for _ in range(400))  # as many names as a model has
    except KilnError as refused:
        assert "target_modules takes too long" in str(refused)


def test_an_expression_that_never_ends_is_refused() -> None:
    """The message comes once it has taken a second, then at once; other threads go on meanwhile."""
    beats = []
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.01):
            beats.append(1)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        pattern = Pattern(ENDLESS, "target_modules")
        for _ in range(400):
            with pytest.raises(KilnError, match=r"target_modules takes too long to match .* repetitions"):
                pattern.search(30 * NAME)
    finally:
        done.set()
        thread.join()
    assert len(beats) > 10, "the interpreter's lock was held"


@pytest.mark.parametrize("text", ["(", "a" * 300_000, "(" * 5000 + ")" * 5000, "a{2,1}", "[z-a]"])
def test_malformed_or_huge(text: str) -> None:
    with pytest.raises(KilnError, match="exclude_modules is not a valid regular expression") as refused:
        Pattern(text, "exclude_modules").search(NAME)
    assert len(str(refused.value)) < 600


def test_honest_ones_are_never_used_up() -> None:
    pattern = compile_pattern(r" blocks\.\d+\.attn ", "target_modules")
    assert all(pattern.search(NAME) for _ in range(20_000))
    assert not pattern.fullmatch(NAME)
    assert compile_pattern(r" blocks\.\d+\.attn ", "target_modules") is pattern


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab.*+?()[]|^$\\{1,}q"), max_size=20))
def test_any_text_is_matched_or_refused(text: str) -> None:
    try:
        compile_pattern(text, "target_modules").search(NAME)
    except KilnError as error:
        assert "target_modules" in str(error)
