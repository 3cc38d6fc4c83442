"""Chinese for what the engine and the nodes say: nearly all of it, and nothing that nobody says any more."""

from __future__ import annotations

import ast
import re

import pytest

from scripts.server_texts import said, template, translated

SAID_ELSEWHERE = re.compile(
    r"^(step |skipped: |note: |stopped|starting|waiting|done:|\{\} layers|; the update of every)"
    r"|^\{\} (images|subject|regularisation|validation)$"
    r"|^The loss became|; validation best |^Set resume"
)
"""Built from parts where they are said."""


@pytest.mark.parametrize(
    ("code", "found"),
    [("'plain'", "plain"), ("f'{a} of {b:.2f}'", "{} of {}"), ("'a ' + f'{b}'", "a {}"), ("name", None)],
)
def test_templates(code: str, found: str | None) -> None:
    assert template(ast.parse(code, mode="eval").body) == found


def test_nearly_everything_has_chinese() -> None:
    sentences, known = set(said()), translated()
    missing = sorted(s for s in sentences if s not in known)
    assert len(sentences) > 200
    assert len(missing) <= 0.05 * len(sentences), missing


def test_nothing_is_translated_that_nobody_says() -> None:
    sentences = set(said())
    stale = [s for s in translated() if s not in sentences and not SAID_ELSEWHERE.search(s)]
    assert len(stale) <= 0.05 * len(sentences), stale


def test_chinese_has_chinese_marks() -> None:
    for english, answer in translated().items():
        assert re.search("[\u4e00-\u9fff]", answer), english
        assert not re.search("[\u4e00-\u9fff][,;:?!]", answer), answer
        assert "\u5bbf\u4e3b" not in answer, "the host is called ComfyUI"
