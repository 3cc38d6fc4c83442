"""What LoRA files say of themselves: the fields that other programs read, and what must never be in them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.config import AdapterConfig, SampleConfig, TrainConfig
from trainer.dataset.encoded import EncodedDataset, EncodedItem, PixelSize
from trainer.families import MODEL_SPECS, model_spec
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.merge import merge_loras
from trainer.lora_files.metadata import (
    MOST_TAGS,
    Origin,
    figures_only,
    origin_metadata,
    shareable,
    without_local_paths,
)
from trainer.lora_files.read import read_lora
from trainer.lora_files.resize import resize
from trainer.lora_files.save import save_lora

LAYER = "diffusion_model.blocks.0.self_attn.q"
SECRETS = (
    "zorb",
    "scarlet",
    "my_secret_model",
    "C:",
    "Users",
    "/root",
    "a sample of",
    "an ugly one",
    "workflow",
)


def lora(rank: int = 4, alpha: float = 2.0) -> dict[str, Tensor]:
    return {
        f"{LAYER}.lora_A.weight": torch.randn(rank, 8),
        f"{LAYER}.lora_B.weight": torch.randn(8, rank),
        f"{LAYER}.alpha": torch.tensor(alpha),
    }


def item(caption: str, **options: Any) -> EncodedItem:
    size = PixelSize(1000, 800, 0, 0, 832, 640)
    return EncodedItem(Path("latent"), Path("text"), caption, (16, 80, 104), sizes=(size,), **options)


def origin(**options: Any) -> Origin:
    items = (
        item("zorb, Scarlet, on a table", repeats=3),
        item("zorb, scarlet"),
        item("zorb, of validation", role="validation"),
    )
    usual = Origin(
        config=TrainConfig(
            steps=20,
            seed=7,
            adapter=AdapterConfig(rank=4, alpha=2.0),
            sample=SampleConfig(prompts="a sample of zorb", negative_prompt="an ugly one"),
        ),
        dataset=EncodedDataset(items),
        base_model="fingerprint",
        steps=15,
        family=("WAN21_T2V", "WAN21", "BaseModel"),
        model_name="my_secret_model",
        graph={"workflow": {"nodes": [{"folder": "C:\\Users\\me\\photos"}]}, "prompt": None},
        thumbnail=b"jpeg",
    )
    return dataclasses.replace(usual, **options)


def header(path: Path) -> tuple[dict[str, str], bytes]:
    """Metadata and the bytes of all tensors, read as the ModelSpec's own example does."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length])["__metadata__"], raw[8 + length :]


def saved(folder: Path, weights: LoraWeights, name: str = "zorb_00001_", **options: Any) -> dict[str, str]:
    found, content = header(save_lora(folder / f"{name}.safetensors", weights, **options))
    digest = hashlib.sha256(content).hexdigest()
    assert found["modelspec.hash_sha256"] == f"0x{digest}"
    assert found["sshs_model_hash"] == digest
    return found


def test_what_managers_read(tmp_path: Path) -> None:
    found = saved(tmp_path, LoraWeights(lora(), origin_metadata(origin())), dtype="bf16")
    assert found["modelspec.sai_model_spec"] == "1.0.0"
    assert found["modelspec.architecture"] == "wan2.1/lora"
    assert found["modelspec.implementation"] == "https://github.com/comfyanonymous/ComfyUI"
    assert found["modelspec.title"] == "zorb" and found["ss_output_name"] == "zorb_00001_"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["modelspec.date"])
    assert found["modelspec.resolution"] == "832x640" and found["ss_resolution"] == "(832, 640)"
    assert found["modelspec.prediction_type"] == "flow"
    assert found["modelspec.trigger_phrase"] == "zorb", "the tag that begins every caption"
    assert base64.b64decode(found["modelspec.thumbnail"].removeprefix("data:image/jpeg;base64,")) == b"jpeg"
    assert json.loads(found["ss_tag_frequency"]) == {"dataset": {"zorb": 2, "scarlet": 2, "on a table": 1}}
    assert found["ss_sd_model_name"] == "my_secret_model" and found["ss_base_model_version"] == "wan"
    expected = {"network_dim": "4", "network_alpha": "2", "steps": "15", "max_train_steps": "20"}
    expected |= {"learning_rate": "0.0001", "optimizer": "adamw", "num_train_images": "4", "seed": "7"}
    assert {name: found[f"ss_{name}"] for name in expected} == expected
    assert all(isinstance(value, str) for value in found.values())


def test_the_template_s_trigger_word_comes_first() -> None:
    dataset = dataclasses.replace(origin().dataset, trigger_word="zrb person")
    assert origin_metadata(origin(dataset=dataset))["modelspec.trigger_phrase"] == "zrb person"
    for captions in (("zorb",), ("zorb", "zorb"), ("zorb, scarlet", "a zorb"), ("", "")):
        found = origin_metadata(origin(dataset=EncodedDataset(tuple(map(item, captions)))))
        assert "modelspec.trigger_phrase" not in found, captions


def test_tags_are_bounded() -> None:
    captions = [f"always, tag {i}" for i in range(3 * MOST_TAGS)]
    counts = json.loads(
        origin_metadata(origin(dataset=EncodedDataset(tuple(map(item, captions)))))["ss_tag_frequency"]
    )["dataset"]
    assert len(counts) == MOST_TAGS and counts["always"] == len(captions)


def test_figures_only_holds_nothing_that_a_user_wrote(tmp_path: Path) -> None:
    foreign = {"ss_training_comment": "zorb", "ss_dataset_dirs": "C:\\Users", "modelspec.author": "/root"}
    weights = LoraWeights(lora(), {**origin_metadata(origin()), **foreign})
    found = saved(tmp_path, figures_only(weights), name="plain")
    text = json.dumps(found)
    assert not [secret for secret in SECRETS if secret in text]
    assert found["ss_network_dim"] == "4" and found["modelspec.architecture"] == "wan2.1/lora"
    assert json.loads(found["lora_kiln.config"])["steps"] == 20
    assert any(secret in json.dumps(weights.metadata) for secret in SECRETS), "the input is as it was"


NO_SETTINGS = ["[]", "5", "null", "{", '"/home/me"', "[" * 100_000, '{"sample": 3}']


@pytest.mark.parametrize("config", NO_SETTINGS, ids=lambda text: text[:9])
def test_settings_that_are_none_are_left_out(config: str) -> None:
    """Of a LoRA or a base of any origin."""
    found = figures_only(LoraWeights({}, {"lora_kiln.config": config, "lora_kiln.steps": "4"})).metadata
    assert found == {"lora_kiln.steps": "4"} | ({"lora_kiln.config": "{}"} if "sample" in config else {})


def test_fields_of_figures_hold_no_path() -> None:
    fields = {
        "ss_network_module": "/home/me/x",
        "lora_kiln.merge": "exact: .. /home/me/a",
        "lora_kiln.config": '{"note": "C:\\\\Users\\\\me\\\\b", "/Users/me/c": 1}',
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
    }
    assert figures_only(LoraWeights({}, fields)).metadata == {
        "ss_network_module": "x",
        "lora_kiln.merge": "exact: .. a",
        "lora_kiln.config": '{"note": "b", "c": 1}',
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
    }


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me", ""),
        ("/home/me/", ""),
        ("~me/", ""),
        ("/root", ""),
        ("C:\\Users\\John Smith", ""),
        ("/mnt/c/Users/me", ""),
        ("at /home/me, a cat", "at , a cat"),
        ("/home/me/photos of me", "photos of me"),
        ("/root/photos/", "photos"),
        ("~me/a/photos", "photos"),
        ("C:\\Users\\John Smith\\my photos", "my photos"),
        ("D:/data/photos", "photos"),
        ("\\\\nas\\photos\\of me", "of me"),
        ("\\\\?\\C:\\Users\\me\\x", "x"),
        ("file:///home/me/x.png", "x.png"),
        ("file:///C:/Users/me/x.png", "x.png"),
        ("../../home/me/x", "x"),
        ("--dir=/home/me/x --to /Users/me/y", "--dir=x --to y"),
        ("embedding:/home/me/x", "embedding:x"),
        ("see /home/me/a.png and 1/2 of (/Users/me/b)", "see a.png and 1/2 of (b)"),
        ("a\n/home/me/x\nb ~/y.txt\n", "a\nx\nb y.txt\n"),
        ('"C:\\a\\b"', '"b"'),
        ('{"deep": "/home/me/x"}', '{"deep": "x"}'),
        ('no JSON {"a": \\"C:\\\\Users\\\\me\\\\x\\", 1', 'no JSON {"a": \\"x\\", 1'),
        ("/workspace/me/train/x", "x"),
        ("/data/home/me", ""),
        ("/cygdrive/c/Users/me/x", "x"),
        ("//nas/photos/of me", "of me"),
        ("smb://nas/me/x.png", "x.png"),
        ("file:%2F%2F%2Fhome%2Fme%2Fx.png", "x.png"),
        ("see %2FUsers%2Fme%2Fx", "see x"),
        ("https://x.org/v?f=/home/me/x.png&n=1", "https://x.org/v?f=x.png&n=1"),
    ],
)
def test_paths_are_brought_down_to_their_last_names(text: str, left: str) -> None:
    """Of any machine, wherever they stand; of a home folder nothing is left."""
    assert without_local_paths(text) == left
    assert without_local_paths(left) == left, "once is enough"
    assert without_local_paths({"list": [text]}) == {"list": [left]}
    assert shareable(LoraWeights({}, {"ss_comment": text})).metadata == {"ss_comment": left}


@pytest.mark.parametrize(
    "text",
    [
        "/imagine a cat, 1/2 price",
        "sub/photos",
        "a // b, 100%2 of it, in/data/x",
        "http://x.org/home/me/y, https://github.com/comfyanonymous/ComfyUI",
        "1girl, and/or, w/o hat, ~50/60 fps, artist \\(x\\), (a:1.2), b:\\(c\\)",
        "data:image/jpeg;base64,/9j/4AAQ/root/tmp/x+/home/x",
        '{"a":   ["1/2"]}',
        "",
    ],
)
def test_what_is_no_path_stays_as_it_is(text: str) -> None:
    assert without_local_paths(text) == text


def test_paths_that_are_names_of_fields() -> None:
    values = {"/home/me/photos": 1, "photos": 2, "/Users/me/photos": 3, "photos (2)": 4, "C:\\a\\b": 5}
    assert without_local_paths(values) == {
        "photos (3)": 1,
        "photos": 2,
        "photos (4)": 3,
        "photos (2)": 4,
        "b": 5,
    }


def test_files_that_are_given_away_have_no_absolute_paths(tmp_path: Path) -> None:
    """Folders that this machine has are paths too, whatever they are called."""
    local = str(tmp_path / "photos of me")
    values = {"folder": local, "list": [{"deep": f'a\n"{local}"'}], "relative": "sub/photos", "number": 3}
    expected = {
        "folder": "photos of me",
        "list": [{"deep": 'a\n"photos of me"'}],
        "relative": "sub/photos",
        "number": 3,
    }
    assert without_local_paths(values) == expected
    weights = LoraWeights({}, {"workflow": json.dumps(values), "prompt": f"no JSON {local}"})
    assert json.loads(shareable(weights).metadata["workflow"]) == expected
    assert shareable(weights).metadata["prompt"] == "no JSON photos of me"


@pytest.mark.parametrize("depth", [400, 990, 100_000])
def test_a_graph_of_any_depth_loses_its_paths(depth: int) -> None:
    text = "[" * depth + '"/home/me/x"' + "]" * depth
    assert shareable(LoraWeights({}, {"workflow": text})).metadata["workflow"] == text.replace(
        "/home/me/", ""
    )


def test_hash_rank_and_name_are_those_of_the_new_file(tmp_path: Path) -> None:
    """A LoRA of another tool that is resized and saved again: its old hashes and ranks would be wrong."""
    old = {
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_output_name": "old",
        "sshs_model_hash": "12",
        "sshs_legacy_hash": "34",
        "modelspec.hash_sha256": "0x56",
        "modelspec.hash_md5": "0x78",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": "A title of its author",
        "unknown": "stays",
    }
    path = save_lora(tmp_path / "old.safetensors", LoraWeights(lora(), old))
    smaller, _ = resize(read_lora(path), 2)
    found = saved(tmp_path, smaller, name="new", format="kohya")
    assert (found["ss_network_dim"], found["ss_network_alpha"], found["ss_output_name"]) == ("2", "2", "new")
    assert found["modelspec.title"] == "A title of its author" and found["unknown"] == "stays"
    assert found["modelspec.implementation"] == "https://github.com/kohya-ss/sd-scripts"
    assert "sshs_legacy_hash" not in found and "modelspec.hash_md5" not in found


def test_a_file_that_says_nothing_is_left_so(tmp_path: Path) -> None:
    found, _ = header(save_lora(tmp_path / "x.safetensors", lora()))
    assert found == {"format": "pt"}


def test_a_merge_says_what_its_parts_say_alike(tmp_path: Path) -> None:
    first = LoraWeights(lora(), {**origin_metadata(origin()), "modelspec.title": "One"})
    second = LoraWeights(lora(), origin_metadata(origin(config=TrainConfig(steps=9))))
    merged, _ = merge_loras([first, second], [1.0, 0.5], "exact")
    found = saved(tmp_path, merged, name="both")
    assert (
        found["modelspec.architecture"] == "wan2.1/lora" and found["modelspec.merged_from"] == "One, LoRA 2"
    )
    assert found["ss_network_dim"] == "8" and "ss_steps" not in found and "workflow" not in found
    other = LoraWeights(lora(), origin_metadata(origin(family=("Flux",))))
    merged, _ = merge_loras([first, other], [1.0, 1.0], "exact")
    assert "modelspec.architecture" not in merged.metadata


@pytest.mark.parametrize(
    ("family", "prediction", "expected"),
    [
        (("SDXL", "SDXL", "BaseModel"), "epsilon", "stable-diffusion-xl-v1-base"),
        (("SD20", "BaseModel"), "v", "stable-diffusion-v2-768-v"),
        (("SD20", "BaseModel"), "epsilon", "stable-diffusion-v2-512"),
        (("FluxSchnell", "Flux", "BaseModel"), "flow", "flux-1-schnell"),
        (("Chroma", "Chroma", "Flux", "BaseModel"), "flow", "chroma"),
        (("WAN22_T2V", "WAN22", "WAN21", "BaseModel"), "flow", "wan2.2"),
        (("HunyuanVideo15", "HunyuanVideo15", "HunyuanVideo"), "flow", "hunyuan-video-1.5"),
        (("HiDream", "HiDream", "BaseModel"), "flow", "hidream"),
        ((), "flow", "unknown"),
    ],
)
def test_architectures(family: tuple[str, ...], prediction: str, expected: str) -> None:
    assert model_spec(family, prediction)[0] == expected
    assert len(set(MODEL_SPECS.values())) == len(MODEL_SPECS), "an architecture is one model's"
