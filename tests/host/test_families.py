"""Every family of families.py trains on this host as the host samples it; see families_run.py for what is measured."""

from __future__ import annotations

import re
from typing import Any

import pytest

from . import families_doc
from .families import CASES
from .in_host import run_in_host

ASPECTS = ("trains", "prediction", "batch", "levels", "saved")
FAILS: dict[tuple[str, str], str] = {}
"""Rows that fail, and why: one that begins to pass fails its test until it is taken out."""


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run_in_host("families_run.py", arguments=())


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("name", CASES)
def test_family(figures: dict[str, Any], name: str, aspect: str) -> None:
    """Three steps at the defaults; the prediction is the host's, in a batch too; the gradients are the same at every
    memory level; a saved LoRA has the effect that it had in training."""
    case = CASES[name]
    if name not in figures:
        assert case.only_newer
        return
    row = figures[name]
    if case.refused:
        assert case.refused in row["refused"]
        return
    found = row[aspect]
    good = isinstance(found, float) and found < 1e-5
    if reason := FAILS.get((name, aspect)):
        assert not good, "this row is mended: take it out of FAILS"
        pytest.xfail(reason)
    assert good, found


@pytest.mark.parametrize("name", CASES)
def test_items_of_one_length_are_one_batch(figures: dict[str, Any], name: str) -> None:
    """Apart from networks that take one mask for a whole batch."""
    row = figures.get(name, {})
    if "batches" in row:
        assert [0, 2] in row["batches"] or row["batches"] == [[0, 1, 2]] or name.startswith("HunyuanVideo")


@pytest.mark.parametrize("name", CASES)
def test_who_is_refused_without_an_image(figures: dict[str, Any], name: str) -> None:
    row = figures.get(name, {})
    if "needs_image" in row:
        assert row["needs_image"] == CASES[name].needs_image


ATTENTION_OR_MLP = re.compile(
    r"attn|attention|mlp|\bffn?\b|ff_[it]\b|feed_forward|single_blocks\.\d+\.linear[12]$|[1_]\d*\.proj_(in|out)$"
)
NOT_WANTED = re.compile(
    r"norm|mod|adaln|refiner|guidance|emb|llm_adapter|caption|lyric|injector|before_proj|after_proj|router"
)


CONVOLUTIONS = re.compile(r"\.(in_layers\.2|out_layers\.3|skip_connection|op|conv|proj_in|proj_out)$")


@pytest.mark.parametrize("name", CASES)
def test_targets_are_attention_and_mlp_of_the_blocks(figures: dict[str, Any], name: str) -> None:
    layers = figures.get(name, {}).get("layers", [])
    if CASES[name].conv_rank:
        convolutions = [x for x in layers if CONVOLUTIONS.search(x)]
        assert len(convolutions) > 20 and len({CONVOLUTIONS.search(x)[1] for x in convolutions}) == 7
        layers = [x for x in layers if x not in convolutions]
    assert [x for x in layers if not ATTENTION_OR_MLP.search(x) or NOT_WANTED.search(x)] == []


@pytest.mark.parametrize("name", CASES)
def test_layers_without_a_gradient_are_not_saved(figures: dict[str, Any], name: str) -> None:
    """Such as the text side of Qwen-Image's last block, which nothing reads."""
    row = figures.get(name, {})
    if "layers" in row:
        assert row["in_file"] == row["trained"]
        assert sorted(row["in_file"] + row["left_out"]) == row["layers"]
        assert bool(row["left_out"]) == (name in ("Qwen-Image", "Qwen-Image-Edit", "ACE-Step")), row[
            "left_out"
        ]


def test_the_page_says_what_is_measured(figures: dict[str, Any]) -> None:
    """docs/families.md; `python -m tests.host.families_doc` writes it anew."""
    text = families_doc.PATH.read_text("utf-8")
    assert families_doc.updated(text, figures) == text
    assert set(families_doc.lines_of(text)) == set(CASES)
