"""Files of a run that no run has written: read, or refused in one bounded sentence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.config import TrainConfig
from trainer.errors import MOST, KilnError
from trainer.lora_files.strengths import BlockWeights, parse_schedule, parse_sweep
from trainer.runs.checkpoint import read_state
from trainer.runs.checkpoint_list import read_summary
from trainer.runs.resume import resume_labels
from trainer.runs.run import load_run
from trainer.runs.runfile import read_dataset, read_run_file

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
MANY = settings(max_examples=150)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 20_000,
        "model = 5",
        "[model]\nfile = 5",
        "train = 5\n[model]\n",
        "[model]\n[train]\nadapter = 5",
        "[model]\n[train]\nobjective = 5",
        "[model]\n[train]\nsteps = 'many'",
        "[model]\n[train]\nsteps = " + "9" * 4000,
        "[model]\n[train]\nsteps = " + "9" * 5000,
        "[model]\n[train.optimizer]\nlearning_rate = [1]",
        "[model]\n[train.adapter]\nkind = 3",
        "[model]\n[train.adapter]\n" + "k" * 5000 + " = 3",
        "dataset = 5\n[model]\n",
        "\0",
    ],
    ids=lambda text: text[:40],
)
def test_run_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(KilnError) as caught:
        read_run_file(tmp_path / "run.toml")
    assert len(str(caught.value)) <= MOST and "\n" not in str(caught.value)


ITEM_FIELDS = [
    "latent_path",
    "text_path",
    "caption",
    "shape",
    "repeats",
    "role",
    "sizes",
    "more_texts",
    "masked",
]
ITEM = {"latent_path": "a", "text_path": "b", "caption": "", "shape": [4, 1, 2, 2]}


@MANY
@given(changes=st.dictionaries(st.sampled_from(ITEM_FIELDS), JSON, max_size=3), rest=JSON)
def test_any_dataset_file(changes: dict[str, Any], rest: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset.json"
        for content in ({"items": [{**ITEM, **changes}]}, {"items": rest}, rest):
            path.write_text(json.dumps(content))
            try:
                read_dataset(path)
            except KilnError as error:
                assert len(str(error)) <= MOST


@pytest.mark.parametrize("name", ["\0", "x" * 5000, "a\ud800"])
def test_paths_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"items": [{**ITEM, "latent_path": name}]}))
    with pytest.raises(KilnError, match=r"cannot be read|is gone"):
        read_dataset(tmp_path / "dataset.json")


STATE = {
    "step": 5,
    "losses": [0.5],
    "config": TrainConfig().to_dict(),
    "dataset": "d",
    "base_model": "m",
    "files": {},
}


@MANY
@given(changes=st.dictionaries(st.sampled_from([*STATE, "validation", "guard"]), JSON, max_size=3))
def test_any_state(changes: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run" / "step-00000005"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({**STATE, **changes}))
        resume_labels(Path(name))
        read_summary(folder)
        try:
            read_state(folder)
        except KilnError as error:
            assert len(str(error)) <= MOST


@MANY
@given(value=JSON)
def test_any_result(value: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "result.json").write_text(json.dumps(value))
        (folder / "lora.safetensors").write_bytes(b"\0" * 20)
        with pytest.raises(KilnError):
            load_run(folder)


@MANY
@given(
    text=st.text("0123456789.-:,;eE naif[]", max_size=30)
    | st.just("9" * 5000 + ":1")
    | st.just("0..1:1e-999")
)
@example(text="0:..")
def test_any_strengths(text: str) -> None:
    def try_it(parse: Any) -> None:
        try:
            parse(text)
        except KilnError as error:
            assert len(str(error)) <= MOST

    for parse in (parse_sweep, parse_schedule):
        try_it(parse)
    names = ["diffusion_model.blocks.0.q", f"diffusion_model.blocks.{'9' * 5000}.q"]
    try_it(lambda given: BlockWeights.parse(given).check(names))
    try_it(lambda given: [BlockWeights.parse(given).of(name) for name in names])
