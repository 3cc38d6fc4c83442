"""Expressions of other people's workflows: bounded in time, and other threads go on meanwhile."""

from __future__ import annotations

import itertools
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import KilnError
from trainer.patterns import Pattern, Patterns, compile_pattern

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
                pattern.search(20 * NAME)
    finally:
        done.set()
        thread.join()
    assert len(beats) > 10, "the interpreter's lock was held"


BOMBS = [
    *(
        "a{1000000000}",
        "a{101}",
        "(?:(?:(?:a{50}){50}){50})",
        "(?:ab?){1,4000000000}c",
        "a{" + "9" * 50_000 + "}",
    ),
    *("a?" * 3000 + "a" * 3000, "[" * 2000 + "a" + "]" * 2000, "(?R)", "(?P<x>(?&x)|a)", "(a(?1)?b)+"),
]
"""What takes the memory, or holds all threads, before it looks at the time."""


@pytest.mark.parametrize(
    "text", ["(", "a" * 300_000, "(" * 5000 + ")" * 5000, "a{2,1}", "[z-a]", *BOMBS], ids=lambda t: t[:20]
)
def test_malformed_or_huge(text: str) -> None:
    with pytest.raises(KilnError, match="exclude_modules is not a valid regular expression") as refused:
        Pattern(text, "exclude_modules").search(NAME)
    assert len(str(refused.value)) < 600


def test_honest_ones_are_never_used_up() -> None:
    pattern = compile_pattern(r" blocks\.\d+\.attn ", "target_modules")
    assert all(pattern.search(NAME) for _ in range(20_000))
    assert not pattern.fullmatch(NAME)
    assert compile_pattern(r" blocks\.\d+\.attn ", "target_modules") is pattern


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab.*+?()[]|^$\\{1,}q"), max_size=20))
def test_any_text_is_matched_or_refused(text: str) -> None:
    try:
        compile_pattern(text, "target_modules").search(NAME)
    except KilnError as error:
        assert "target_modules" in str(error)


def test_names_that_no_layer_has() -> None:
    with pytest.raises(KilnError, match="cannot be matched with a name of 100000 characters"):
        compile_pattern("a", "target_modules").search("b" * 100_000)


def test_all_names_of_a_large_model_are_one_expression() -> None:
    names = [f"transformer_blocks.{block}.attn.to_{part}" for block in range(100) for part in "qkv"]
    pattern = compile_pattern("|".join(re.escape(name) for name in names), "target_modules")
    assert all(pattern.fullmatch(name) for name in names) and not pattern.fullmatch("to_q")
    loose = compile_pattern("|".join(rf"blocks\.{block}\..*attn.*" for block in range(100)), "target_modules")
    assert loose.search(names[0])


def test_many_expressions_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may hold thousands, each of them quick."""
    monkeypatch.setattr("trainer.patterns._PATIENCE", 0.05)
    found = Patterns([(rf"(a|aa)+b{n}", n) for n in range(1000)], "rank_pattern")
    assert Patterns([("^x$", 1), ("b2$", 2)], "rank_pattern").first("aab2") == 2
    with pytest.raises(KilnError, match=r"rank_pattern takes too long to match: it holds 1000 expressions"):
        for _ in range(1000):
            assert found.first("a" * 14) is None
    with pytest.raises(KilnError, match="rank_pattern holds more than 5000 expressions"):
        Patterns(((str(n), n) for n in itertools.count()), "rank_pattern")


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                "a?",
                "a*",
                "a+?",
                "[ab]",
                "(?:",
                "(",
                ")",
                ")*",
                "){1,99}",
                "|",
                "(?=",
                r"\1",
                ".*",
                "{3}",
                "[^b]+",
            ]
        ),
        max_size=300,
    ).map("".join)
)
def test_long_ones_are_matched_or_refused(text: str) -> None:
    try:
        pattern = Pattern(text + "[0-9]", "target_modules")
        for _ in range(50):
            pattern.search("a" * 60)
    except KilnError as error:
        assert "target_modules" in str(error)
