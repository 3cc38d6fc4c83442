"""Chinese for what the engine and the nodes say: all of it, and nothing that nobody says any more."""

from __future__ import annotations

import ast
import re

import pytest

from scripts.server_texts import UNSAID, said, spoken_throughout, template, translated

SAID_ELSEWHERE = re.compile(
    r"^(step |skipped: |note: |stopped|starting|waiting|done: |\{\} layers|; the update of every)"
    r"|^(at step \{\}|empty|kind is \{\}|it is off|\{\}: used as .*|\{\}: also .*|\{\}: not used, \{\})$"
    r"|^(Not ready: |Usable, |Ready to train)"
    r"|^\{\} (images|subject|regularisation|validation)$"
    r"|^(weights|adapter|gradients|optimizer|activations) \{\}$"
    r"|^The loss became|^; the LoRA: |^a slider: |^This could not be done|^The run's own copy "
)
"""Built from parts where they are said."""


@pytest.mark.parametrize(
    ("code", "found"),
    [("'plain'", "plain"), ("f'{a} of {b:.2f}'", "{} of {}"), ("'a ' + f'{b}'", "a {}"), ("name", None)],
)
def test_templates(code: str, found: str | None) -> None:
    assert template(ast.parse(code, mode="eval").body) == found


def test_everything_has_chinese() -> None:
    sentences, known = set(said()), translated()
    assert len(sentences) > 500
    assert sorted(s for s in sentences if s not in known) == []


def test_what_is_named_as_unsaid_still_stands_there() -> None:
    assert set(UNSAID) <= set(spoken_throughout())


def test_nothing_is_translated_that_nobody_says() -> None:
    sentences = set(said())
    assert [s for s in translated() if s not in sentences and not SAID_ELSEWHERE.search(s)] == []


def test_chinese_has_chinese_marks() -> None:
    for english, answer in translated().items():
        assert re.search("[\u4e00-\u9fff]", answer), english
        assert not re.search("[\u4e00-\u9fff][,;:?!]", answer), answer
        assert "\u5bbf\u4e3b" not in answer, "the host is called ComfyUI"
