"""The items of a run with the highest and the lowest loss, from its folder; folders of earlier versions too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.dataset.encoded import EncodedDataset
from trainer.errors import KilnError
from trainer.loop.train import train
from trainer.runs.checkpoint_list import STATE, newest_checkpoint
from trainer.runs.hard_items import UNNAMED, pointed, ranked_items
from trainer.runs.runfile import RunFile, read_dataset, write_run_file

from ..toy import ToyDenoiser, hold_out, make_config, make_encoded


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Its folder; three items are trained on and one is held out, all made from files that are gone."""
    made = hold_out(make_encoded(tmp_path / "items", 4), 1)
    named = (dataclasses.replace(i, source=Path(f"/gone/{n}.mp4")) for n, i in enumerate(made.items))
    encoded, folder = EncodedDataset(tuple(named)), tmp_path / "run"
    config = make_config(steps=120, learning_rate=0.0)
    train(ToyDenoiser(), encoded, config, run_folder=folder)
    write_run_file(folder, RunFile(model={}, config=config), encoded)
    return folder


def rewrite(path: Path, name: str, value: Any) -> None:
    values = json.loads(path.read_text("utf-8"))
    values[name] = value
    path.write_text(json.dumps(values), "utf-8")


def test_each_item_is_at_one_end(run: Path) -> None:
    high, low = ranked_items(run)
    assert {i.number for i in high} | {i.number for i in low} == {1, 2, 3} and len(high) == 2
    assert high[0].times > high[1].times == 1.0 > low[0].times and sum(i.draws for i in (*high, *low)) > 60
    assert high[0].name == f"{high[0].number - 1}.mp4" and not high[0].stands_out
    tile = pointed(high)[0]
    assert tile.lines[0] == f"{high[0].number}. {high[0].name}"


def test_a_list_of_an_earlier_version_names_captions(run: Path) -> None:
    listed = run / "dataset.json"
    items = json.loads(listed.read_text("utf-8"))["items"]
    rewrite(listed, "items", [{k: v for k, v in item.items() if k != "source"} for item in items])
    high, _ = ranked_items(run)
    assert high[0].name == f"item {high[0].number - 1}" and high[0].source is None


def test_items_of_a_run_without_metadata_have_numbers_only(run: Path) -> None:
    config = dataclasses.replace(make_config(), embed_metadata=False)
    encoded = read_dataset(run / "dataset.json")
    write_run_file(run, RunFile(model={}, config=config), encoded)
    high, low = ranked_items(run)
    assert {(i.name, i.source) for i in (*high, *low)} == {("", None)} and {
        i.number for i in (*high, *low)
    } == {1, 2, 3}
    assert pointed(high)[0].lines[0] == f"{high[0].number}. {UNNAMED}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "has kept no losses of its items"),
        ({"draws": [1, 2, 3]}, "cannot be read"),
        ({"draws": 3, "excess": [], "loss": []}, "cannot be read"),
        ({"draws": ["a"] * 3, "excess": [0.0] * 3, "loss": [0.0] * 3}, "cannot be read"),
    ],
)
def test_what_a_checkpoint_may_say_instead(run: Path, value: Any, message: str) -> None:
    newest = newest_checkpoint(run)
    assert newest is not None
    rewrite(newest / STATE, "item_losses", value)
    with pytest.raises(KilnError, match=message):
        ranked_items(run)


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="has no checkpoint yet"):
        ranked_items(tmp_path)
