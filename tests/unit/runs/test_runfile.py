"""run.toml and dataset.json: what is written comes back, what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from trainer.config import AdapterConfig, OptimizerConfig, SampleConfig, TrainConfig
from trainer.dataset.encoded import EncodedDataset
from trainer.dataset.places import Places
from trainer.errors import KilnError
from trainer.runs.runfile import LEFT_OUT, RunFile, read_dataset, read_run_file, write_run_file

from ..toy import hold_out, make_encoded

CONFIG = TrainConfig(
    steps=7,
    seed=2**63,
    adapter=AdapterConfig(target_modules='a "quoted" \\d+', rank_stabilised=True, rank_pattern="ffn=2"),
    optimizer=OptimizerConfig(learning_rate=1.2345678901234567e-07),
)


def test_round_trip(tmp_path: Path) -> None:
    encoded = hold_out(make_encoded(tmp_path, shapes=((4, 1, 2, 2), (4, 1, 2, 3))), 1)
    run = RunFile(
        model={"loader": "UNETLoader", "file": "a\\b.safetensors", "fingerprint": "f"},
        text_encoder={"loader": "CLIPLoader", "clip_name": "c.safetensors", "fingerprint": "g"},
        config=CONFIG,
    )
    path = write_run_file(tmp_path / "run", run, encoded)
    assert read_run_file(path) == run
    again = read_dataset(tmp_path / "run" / run.dataset)
    assert again.fingerprint == encoded.fingerprint and again.items == encoded.items


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[model]", "[modle]", "holds 'modle'; known are dataset, model"),
        ("steps = 7", "steps = 0", "steps is 0; it must lie between 1"),
        ("steps = 7", "stesp = 7", "Unknown setting 'stesp'"),
        ("steps = 7", "steps = = 7", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_run_file(
        tmp_path / "run", RunFile(model={"loader": ""}, config=CONFIG), make_encoded(tmp_path)
    )
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(KilnError, match=message):
        read_run_file(path)


def worded(folder: Path) -> EncodedDataset:
    """Captions, words and pictures, one of them outside the host's folders."""
    items = [
        dataclasses.replace(
            item, caption=f"a secret caption {n}", words=(f"secret words {n}",), source=source
        )
        for n, (item, source) in enumerate(
            zip(
                make_encoded(folder).items,
                [folder / "input" / "secret1.png", Path("/home/me/secret2.png")] * 2,
                strict=True,
            )
        )
    ]
    return EncodedDataset(
        tuple(items), trigger_word="secretword", class_word="secret class", slider="secret slider"
    )


def test_paths_are_below_the_hosts_folders_and_whole_ones_are_still_read(tmp_path: Path) -> None:
    encoded, places = worded(tmp_path), Places({"": tmp_path})
    run, folder = RunFile(model={"loader": ""}, config=CONFIG), tmp_path / "run"
    write_run_file(folder, run, encoded, places)
    texts = [file.read_text("utf-8") for file in folder.iterdir()]
    assert not any(str(tmp_path) in text or "/home/me" in text for text in texts)
    again = read_dataset(folder / run.dataset, places)
    assert [i.files for i in again.items] == [i.files for i in encoded.items]
    assert again.fingerprint == encoded.fingerprint and again.items[0] == encoded.items[0]
    assert again.items[1].name == "'secret2.png'" or again.items[1].name == "secret2.png"
    write_run_file(folder, run, encoded)  # as versions before wrote it
    assert read_dataset(folder / run.dataset, places).items == encoded.items


def test_without_metadata_no_word_of_the_user_is_in_the_files(tmp_path: Path) -> None:
    encoded = worded(tmp_path)
    sample = SampleConfig(prompts="a secret prompt", negative_prompt="secret things", width=64)
    config = dataclasses.replace(CONFIG, embed_metadata=False, sample=sample)
    run, folder = RunFile(model={"loader": ""}, config=config), tmp_path / "run"
    path = write_run_file(folder, run, encoded, Places({"": tmp_path}))
    texts = [file.read_text("utf-8") for file in folder.iterdir()]
    assert len(texts) == 2 and not any("secret" in text for text in texts)
    assert read_run_file(path).config == dataclasses.replace(config, sample=SampleConfig(width=64))
    again = read_dataset(folder / run.dataset, Places({"": tmp_path}))
    assert again.remarks == (LEFT_OUT,) and again.fingerprint == encoded.fingerprint
    assert [i.files for i in again.items] == [i.files for i in encoded.items]
    assert "left_out" not in json.loads(
        write_run_file(folder, RunFile(model={}), encoded).with_name("dataset.json").read_text("utf-8")
    )


def test_missing_files_are_named(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    write_run_file(tmp_path / "run", RunFile(model={"loader": ""}), encoded)
    encoded.items[2].latent_path.unlink()
    with pytest.raises(KilnError, match=r"latent2\.safetensors of dataset\.json is gone"):
        read_dataset(tmp_path / "run" / "dataset.json")
    with pytest.raises(KilnError, match="cannot be read"):
        read_run_file(tmp_path / "run.toml")


def test_run_files_of_earlier_versions_mean_what_they_did(tmp_path: Path) -> None:
    path = write_run_file(
        tmp_path / "run", RunFile(model={"loader": ""}, config=CONFIG), make_encoded(tmp_path)
    )
    text = path.read_text("utf-8")
    for new in ('size_conditioning = "auto"\n', 'shift_by_size = ""\n', "guidance = 1.0\n"):
        assert text.count(new) == 1
        text = text.replace(new, "")
    text = text.replace('timestep_sampling = "auto"', 'timestep_sampling = "logit_normal"')
    path.write_text(text.replace("\nshift = 0.0", "\nshift = 3.0"), "utf-8")
    objective = read_run_file(path).config.objective
    assert (objective.timestep_sampling, objective.shift, objective.size_conditioning) == (
        "logit_normal",
        3.0,
        "768",
    )
    path.write_text('[model]\nloader = ""\n[train.objective]\nshift = 5.0\n', "utf-8")
    assert read_run_file(path).config.objective.size_conditioning == "auto", "written by hand"
