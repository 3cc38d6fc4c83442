"""Using what was trained, on a live server: prompt tags, sweeps and grids, merging, resizing, extracting, formats."""

from __future__ import annotations

import io as bytes_io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scripts.host import RunningHost
from scripts.host_client import HostClient

from .conftest import GraphFailed, RunGraph
from .graphs import dataset, loaders, node, sampled_files, sampling, saved, training

WAN = Path(__file__).parents[1] / "tiny_wan" / "models" / "tiny_wan.safetensors"


@pytest.fixture(scope="module")
def two(host: RunningHost) -> dict[str, str]:
    """Two LoRA files for the tiny Wan, strong enough to be seen, of different rank and alpha."""
    folder = host.base / "models" / "loras" / "using"
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for name, rank, alpha, seed in (("first", 4, 2.0, 1), ("second", 6, 6.0, 2)):
        g = torch.Generator().manual_seed(seed)
        tensors = {}
        for key, weight in load_file(WAN).items():
            if key.endswith((".q.weight", ".v.weight", "ffn.0.weight")):
                layer = "diffusion_model." + key.removesuffix(".weight")
                tensors[f"{layer}.lora_A.weight"] = 0.05 * torch.randn(rank, weight.shape[1], generator=g)
                tensors[f"{layer}.lora_B.weight"] = 0.1 * torch.randn(len(weight), rank, generator=g)
                tensors[f"{layer}.alpha"] = torch.tensor(alpha)
        save_file(tensors, folder / f"{name}.safetensors")
        names[name] = f"using/{name}.safetensors"
    return names


def load(name: str, strength: float = 1.0, model: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return node("KilnLoadLora", lora_name=name, model=model or ["model", 0], strength=strength, **more)


def pictures(host: RunningHost, outputs: dict[str, Any], *names: str) -> list[np.ndarray]:
    return [
        np.frombuffer(b"".join(sampled_files(host, outputs, name)), np.uint8).astype(int) for name in names
    ]


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal but for the last bit of a pixel: sums in another order."""
    return int(np.abs(first - second).max()) <= 1


def test_prompt_tags_are_applied_and_taken_out(
    run_graph: RunGraph, host: RunningHost, two: dict[str, str]
) -> None:
    prompt = "a red circle, <lora:first:0.8>, <lora:using/second:0.5:0.2>"
    graph = {
        **loaders(),
        "tags": node("KilnPromptLora", model=["model", 0], prompt=prompt),
        "one": load(two["first"], 0.8),
        "both": load(two["second"], 0.5, ["one", 0]),
        "weight": node(
            "KilnPromptLora", model=["model", 0], prompt="a red circle lora_weight=0.8", lora=["one", 2]
        ),
        "shown": node("PreviewAny", source=["tags", 2]),
        **sampling("by tags", ["tags", 0]),
        **sampling("by nodes", ["both", 0]),
        **sampling("by weight", ["weight", 0]),
        **sampling("one alone", ["one", 0]),
    }
    outputs = run_graph(graph)
    tags, nodes, weight, alone = pictures(host, outputs, "by tags", "by nodes", "by weight", "one alone")
    assert outputs["shown"]["text"][0] == "a red circle"
    assert np.array_equal(tags, nodes) and np.array_equal(weight, alone) and not same(tags, alone)


def test_an_unknown_name_lists_the_nearest(run_graph: RunGraph, two: dict[str, str]) -> None:
    graph = {**loaders(), "tags": node("KilnPromptLora", model=["model", 0], prompt="<lora:secnd:1>")}
    with pytest.raises(GraphFailed, match=r"no LoRA file 'secnd' .*nearest: .*using/second.safetensors"):
        run_graph({**graph, "show": node("PreviewAny", source=["tags", 2])})


def test_a_file_of_another_kind_and_size_is_refused(
    run_graph: RunGraph, host: RunningHost, two: dict[str, str]
) -> None:
    """The host only logs it and samples without."""
    layer = "diffusion_model.blocks.0.self_attn.q"
    parts = {f"{layer}.hada_{k}": torch.ones(40, 40) for k in ("w1_a", "w1_b", "w2_a", "w2_b")}
    save_file(parts, host.base / "models" / "loras" / "using" / "wide.safetensors")
    graph = {**loaders(), "wide": load("using/wide.safetensors"), **sampling("wide loha", ["wide", 0])}
    with pytest.raises(GraphFailed, match=r"self_attn.q is 40 x 40 in the LoRA and 256 x 256 in the model"):
        run_graph(graph)


@pytest.mark.parametrize("prefix", ["", "test/", ".", "test/ ", "a\0b"])
def test_a_prefix_without_a_name_is_refused(run_graph: RunGraph, two: dict[str, str], prefix: str) -> None:
    """The host would count those wrongly and write over the last one."""
    save = node("KilnSaveLora", lora=["a", 2], filename_prefix=prefix, format="comfyui", dtype="fp32")
    with pytest.raises(GraphFailed, match="ends in no name; write for example kiln/my_file"):
        run_graph({**loaders(), "a": load(two["first"], 0.0), "save": save})


def test_block_weights(run_graph: RunGraph, host: RunningHost, two: dict[str, str]) -> None:
    graph = {
        **loaders(),
        "none": load(two["first"], block_weights="0-3:0"),
        "halved": load(two["first"], 1.0, block_weights="0-3:0.5"),
        "half": load(two["first"], 0.5),
        "part": load(two["first"], block_weights="ffn:0, 0-1:0.5"),
        **{
            k: v
            for name in ("none", "halved", "half", "part")
            for k, v in sampling(f"block {name}", [name, 0]).items()
        },
        **sampling("plain", ["model", 0]),
    }
    outputs = run_graph(graph)
    plain, none, halved, half, part = pictures(
        host, outputs, "plain", "block none", "block halved", "block half", "block part"
    )
    assert np.array_equal(plain, none) and np.array_equal(halved, half)
    assert not same(part, half) and not same(part, plain)
    with pytest.raises(
        GraphFailed, match="'7-9' in block_weights fits no layer of the LoRA; it has blocks 0-3"
    ):
        graph = {**loaders(), "bad": load(two["first"], block_weights="7-9:0")}
        run_graph({**graph, **sampling("bad block", ["bad", 0])})


def test_block_weights_know_the_model_s_own_names(run_graph: RunGraph, host: RunningHost) -> None:
    """A file may spell a layer without dots, and no table knows it without the model."""
    tensors = {
        "lora_unet_head_head.lora_down.weight": torch.ones(2, 256),
        "lora_unet_head_head.lora_up.weight": 0.01 * torch.ones(64, 2),
    }
    save_file(tensors, host.base / "models" / "loras" / "using" / "head.safetensors")
    graph = {
        **loaders(),
        "off": load("using/head.safetensors", block_weights="head.head:0"),
        "on": load("using/head.safetensors"),
        **sampling("head off", ["off", 0]),
        **sampling("head on", ["on", 0]),
        **sampling("no head", ["model", 0]),
    }
    off, on, plain = pictures(host, run_graph(graph), "head off", "head on", "no head")
    assert np.array_equal(off, plain) and not same(on, plain)


def test_schedule_follows_the_sampling(run_graph: RunGraph, host: RunningHost, two: dict[str, str]) -> None:
    """Through the host's hooks. Always 1 is the LoRA, always 0 the model; off at first is neither."""
    schedules = {"always": "0:1", "never": "0:0", "late": "0:0, 0.3:1", "early": "0.3:0", "twice": "0:2"}
    graph = {
        **loaders(),
        **{name: load(two["first"], 1.0, schedule=text) for name, text in schedules.items()},
        "full": load(two["first"], 1.0),
        "double": load(two["first"], 2.0),
        **sampling("plain", ["model", 0]),
    }
    for name in (*schedules, "full", "double"):
        graph |= sampling(f"when {name}", [name, 0])
    outputs = run_graph(graph)
    found = dict(
        zip(
            ("plain", *schedules, "full", "double"),
            pictures(host, outputs, "plain", *(f"when {n}" for n in (*schedules, "full", "double"))),
            strict=True,
        )
    )
    assert same(found["always"], found["full"]) and same(found["never"], found["plain"])
    assert same(found["twice"], found["double"])
    for name in ("late", "early"):
        assert not same(found[name], found["full"]) and not same(found[name], found["plain"])
    assert not same(found["late"], found["early"])
    again = run_graph({**loaders(), **sampling("plain again", ["model", 0], steps=5)})
    fresh = pictures(host, again, "plain again")[0]
    graph = {**loaders(), "x": load(two["second"], 0.0), **sampling("untouched", ["x", 0], steps=5)}
    assert np.array_equal(fresh, pictures(host, run_graph(graph), "untouched")[0])


def test_sweep_and_grid(
    run_graph: RunGraph, host: RunningHost, client: HostClient, two: dict[str, str]
) -> None:
    graph = {
        **loaders(),
        "file": load(two["first"], 0.0),
        "sweep": node("KilnWeightSweep", model=["model", 0], lora=["file", 2], strengths="0, 0.5..1:0.5"),
        **sampling("swept", ["sweep", 0]),
        "grid": node(
            "KilnComparisonGrid", images=["swept decode", 0], labels=["sweep", 1], columns=0, mode="stills"
        ),
        "half": load(two["first"], 0.5),
        **sampling("by hand", ["half", 0]),
        **sampling("plain", ["model", 0]),
    }
    outputs = run_graph(graph)
    swept = pictures(host, outputs, "swept")[0].reshape(3, -1)
    plain, half = pictures(host, outputs, "plain", "by hand")
    assert np.array_equal(swept[0], plain) and np.array_equal(swept[1], half) and not same(swept[2], half)
    (image,) = outputs["grid"]["images"]
    grid = Image.open(bytes_io.BytesIO(client.view(**image)))
    assert grid.width == 3 * 64 + 4 * 8 and grid.height > 2 * 64


def test_grid_of_videos(
    run_graph: RunGraph, host: RunningHost, client: HostClient, two: dict[str, str]
) -> None:
    """Every frame of the grid shows the same moment of each video, and the grid can be saved as a video."""
    graph = {
        **loaders(),
        "file": load(two["first"], 0.0),
        "sweep": node("KilnWeightSweep", model=["model", 0], lora=["file", 2], strengths="0, 1"),
        **sampling("moving", ["sweep", 0], batch=1),
        **sampling("alone", ["model", 0], batch=1),
    }
    for name in ("moving", "alone"):
        graph[f"{name} empty"]["inputs"]["length"] = 9
    graph["grid"] = node(
        "KilnComparisonGrid", images=["moving decode", 0], labels=["sweep", 1], columns=0, mode="video"
    )
    graph["webp"] = node(
        "SaveAnimatedWEBP",
        images=["grid", 0],
        filename_prefix="test/grid",
        fps=8.0,
        lossless=True,
        quality=80,
        method="default",
    )
    outputs = run_graph(graph)
    frames = [
        np.asarray(Image.open(bytes_io.BytesIO(client.view(**image)))) for image in outputs["grid"]["images"]
    ]
    assert len(frames) == 9 and frames[0].shape[1] == 2 * 64 + 3 * 8
    cells = pictures(host, outputs, "moving")[0].reshape(2, 9, 64, 64, 3)
    for frame, left, right in zip(frames, cells[0], cells[1], strict=True):
        assert same(frame[-8 - 64 : -8, 8:72].astype(int), left)
        assert same(frame[-8 - 64 : -8, 80:144].astype(int), right)
    assert np.array_equal(cells[0].reshape(-1), pictures(host, outputs, "alone")[0])
    assert not same(cells[0].reshape(-1), cells[1].reshape(-1)) and not same(cells[1, 0], cells[1, 8])
    (moving,) = outputs["webp"]["images"]
    video = Image.open(bytes_io.BytesIO(client.view(**moving)))
    changes = sum(not np.array_equal(a, b) for a, b in itertools.pairwise(frames))
    assert video.n_frames == 1 + changes >= 2  # equal frames in a row are stored once
    assert video.size == (frames[0].shape[1], frames[0].shape[0])


def test_two_loras_against_each_other(run_graph: RunGraph, client: HostClient, two: dict[str, str]) -> None:
    graph = {
        **loaders(),
        "a": load(two["first"], 0.0),
        "b": load(two["second"], 0.0),
        "one": node("KilnWeightSweep", model=["model", 0], lora=["a", 2], strengths="0, 1", name="A"),
        "two": node(
            "KilnWeightSweep",
            model=["one", 0],
            lora=["b", 2],
            strengths="0, 0.5, 1",
            name="B",
            label=["one", 1],
        ),
        **sampling("crossed", ["two", 0], batch=1),
        "grid": node("KilnComparisonGrid", images=["crossed decode", 0], labels=["two", 1], columns=3),
        "labels": node("PreviewAny", source=["two", 1]),
    }
    outputs = run_graph(graph)
    assert outputs["labels"]["text"] == [f"A {a}, B {b}" for a in ("0", "1") for b in ("0", "0.5", "1")]
    (image,) = outputs["grid"]["images"]
    assert Image.open(bytes_io.BytesIO(client.view(**image))).width == 3 * 64 + 4 * 8


def test_checkpoints_by_strength(run_graph: RunGraph, host: RunningHost) -> None:
    graph = {**loaders(), **dataset(), **training(steps=6, seed=701), **saved()}
    graph["sweep"] = node(
        "KilnWeightSweep", model=["model", 0], lora=["train", 0], strengths="0.5, 1", run=["train", 3]
    )
    graph["labels"] = node("PreviewAny", source=["sweep", 1])
    labels = run_graph(graph)["labels"]["text"]
    assert labels[-2:] == ["step 6, strength 0.5", "step 6, strength 1"] and len(labels) % 2 == 0


def merged(two: dict[str, str], method: str, **options: Any) -> dict[str, Any]:
    values = {
        "method": method,
        "rank": 0,
        "density": 0.5,
        "seed": 0,
        "weight_1": 0.8,
        "weight_2": 0.5,
        **options,
    }
    return {
        "a": load(two["first"], 0.0),
        "b": load(two["second"], 0.0),
        "merge": node("KilnMergeLoras", lora_1=["a", 2], lora_2=["b", 2], **values),
    }


def test_merge_then_apply_is_one_after_the_other(
    run_graph: RunGraph, host: RunningHost, two: dict[str, str]
) -> None:
    graph = {
        **loaders(),
        **merged(two, "exact"),
        "applied": node("KilnApplyLora", model=["model", 0], lora=["merge", 0], strength=1.0),
        "one": load(two["first"], 0.8),
        "both": load(two["second"], 0.5, ["one", 0]),
        "into": node("KilnMergeIntoModel", model=["one", 0], lora=["b", 2], strength=0.5),
        **sampling("by merge", ["applied", 0]),
        **sampling("in a row", ["both", 0]),
        **sampling("into model", ["into", 0]),
    }
    outputs = run_graph(graph)
    merge, row, into = pictures(host, outputs, "by merge", "in a row", "into model")
    assert same(merge, row) and np.array_equal(into, row)
    assert outputs["merge"]["text"][0].endswith("rank 10, exact")


@pytest.mark.parametrize("method", ["svd", "ties", "dare_ties"])
def test_other_methods_and_resize(run_graph: RunGraph, two: dict[str, str], method: str) -> None:
    graph = {
        **loaders(),
        **merged(two, method, rank=5),
        "small": node("KilnResizeLora", lora=["merge", 0], rank=3),
        "save": node(
            "KilnSaveLora", lora=["small", 0], filename_prefix="test/small", format="comfyui", dtype="fp32"
        ),
    }
    outputs = run_graph(graph)
    assert "rank 5" in outputs["merge"]["text"][0] and "% of the energy kept" in outputs["merge"]["text"][0]
    tensors = load_file(outputs["save"]["path"][0])
    assert {t.shape[0] for k, t in tensors.items() if k.endswith("lora_A.weight")} == {3}


def test_merged_file_samples_as_the_graph_and_is_extracted_again(
    run_graph: RunGraph, host: RunningHost, client: HostClient, two: dict[str, str]
) -> None:
    graph = {
        **loaders(),
        "one": load(two["first"], 0.85),
        "whole": node(
            "KilnSaveMergedModel",
            base_name="tiny_wan.safetensors",
            lora_1=["one", 2],
            weight_1=0.85,
            filename_prefix="test/merged",
            dtype="base",
            layout="comfyui",
        ),
        **sampling("by graph", ["one", 0]),
    }
    outputs = run_graph(graph)
    path = Path(outputs["whole"]["path"][0])
    assert path.is_relative_to(host.base / "output" / "diffusion_models")
    assert outputs["whole"]["text"][0].startswith(f"{path.name}: 20 of 123 tensors changed")
    name = str(path.relative_to(host.base / "output" / "diffusion_models"))
    extract = node("KilnExtractLora", tuned_name=name, base_name="tiny_wan.safetensors", rank=4)
    graph = {
        **loaders(),
        "merged": node("UNETLoader", unet_name=name, weight_dtype="default"),
        "extract": extract,
        "applied": node("KilnApplyLora", model=["model", 0], lora=["extract", 0], strength=1.0),
        **sampling("from file", ["merged", 0]),
        **sampling("extracted", ["applied", 0]),
    }
    found = run_graph(graph)
    assert "20 layers" in found["extract"]["text"][0]
    by_graph = pictures(host, outputs, "by graph")[0]
    assert same(pictures(host, found, "from file")[0], by_graph)
    assert np.abs(pictures(host, found, "extracted")[0] - by_graph).mean() < 2


def test_extracted_modulation_is_applied(run_graph: RunGraph, host: RunningHost) -> None:
    """Parameters that a block holds beside its layers, which the host's patches never reach."""
    tensors = load_file(WAN)
    for key, tensor in tensors.items():
        if key.endswith("modulation"):
            tensors[key] = tensor + 0.3 * torch.randn(
                tensor.shape, generator=torch.Generator().manual_seed(3)
            ).to(tensor)
    save_file(tensors, host.base / "models" / "diffusion_models" / "modulated.safetensors")
    names = {"tuned_name": "modulated.safetensors", "base_name": "tiny_wan.safetensors"}
    graph = {
        **loaders(),
        "tuned": node("UNETLoader", unet_name="modulated.safetensors", weight_dtype="default"),
        "extract": node("KilnExtractLora", rank=4, **names),
        "applied": node("KilnApplyLora", model=["model", 0], lora=["extract", 0], strength=1.0),
        "half": node("KilnApplyLora", model=["model", 0], lora=["extract", 0], strength=0.5),
        "halves": node("KilnMergeIntoModel", model=["half", 0], lora=["extract", 0], strength=0.5),
        "timed": node("KilnApplyLora", model=["model", 0], lora=["extract", 0], strength=1.0, schedule="0:1"),
    }
    for name, model in (
        ("unmodulated", "model"),
        *((f"modulated {m}", m) for m in list(graph)[3:] if m != "extract"),
    ):
        graph |= sampling(name, [model, 0])
    outputs = run_graph(graph)
    found = dict(
        zip(
            ("plain", "tuned", "applied", "half", "halves", "timed"),
            pictures(
                host,
                outputs,
                "unmodulated",
                *(f"modulated {m}" for m in ("tuned", "applied", "half", "halves", "timed")),
            ),
            strict=True,
        )
    )
    assert not same(found["plain"], found["tuned"]) and not same(found["half"], found["tuned"])
    for name in ("applied", "halves", "timed"):
        assert same(found[name], found["tuned"]), name
    again = run_graph({**loaders(), **sampling("unmodulated again", ["model", 0], text="a red circle ")})
    assert same(pictures(host, again, "unmodulated again")[0], found["plain"])


def test_merged_pipeline_folder(
    run_graph: RunGraph, host: RunningHost, client: HostClient, two: dict[str, str]
) -> None:
    """A pipeline folder among the host's models completes the merged one."""
    mine = host.base / "models" / "diffusers" / "mine"
    for name, text in (
        (
            "model_index.json",
            '{"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}',
        ),
        ("transformer/config.json", "{}"),
        ("vae/config.json", '{"z_dim": 16}'),
    ):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(text)
    graph = {
        **loaders(),
        "one": load(two["first"], 0.0),
        "whole": node(
            "KilnSaveMergedModel",
            base_name="tiny_wan.safetensors",
            lora_1=["one", 2],
            weight_1=0.85,
            filename_prefix="test/pipe",
            dtype="base",
            layout="diffusers",
            pipeline="mine",
        ),
    }
    offered = client.object_info("KilnSaveMergedModel")["KilnSaveMergedModel"]["input"]["optional"][
        "pipeline"
    ]
    assert {"none", "mine"} <= set(offered[1]["options"])
    out = Path(run_graph(graph)["whole"]["path"][0])
    assert (out / "vae" / "config.json").read_text() == '{"z_dim": 16}'
    assert (out / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
    graph["whole"]["inputs"]["pipeline"] = "none"
    outputs = run_graph(graph)
    assert "from_pretrained needs text_encoder, tokenizer, vae beside it" in outputs["whole"]["text"][0]
    assert Path(outputs["whole"]["path"][0]) != out


@pytest.mark.parametrize("format", ["comfyui", "kohya", "diffusers", "peft"])
def test_every_format_is_written(run_graph: RunGraph, two: dict[str, str], format: str) -> None:
    graph = {
        **loaders(),
        "file": load(two["first"], 0.0),
        "save": node(
            "KilnSaveLora", lora=["file", 2], filename_prefix=f"test/{format}", format=format, dtype="keep"
        ),
    }
    path = Path(run_graph(graph)["save"]["path"][0])
    assert path.is_dir() == (format == "peft")
    again = run_graph(graph | {"save": node("KilnSaveLora", **{**graph["save"]["inputs"], "dtype": "fp32"})})
    assert Path(again["save"]["path"][0]) != path, "nothing is overwritten"
