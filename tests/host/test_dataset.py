"""The dataset nodes on a live server, from folders good and hostile to a trained step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.host import RunningHost
from scripts.host_client import HostClient
from tests.media import clip, hostile_folder, scene

from .conftest import GraphFailed, MakeFolder, RunGraph
from .graphs import Prompt, loaders, node, saved, training


def load(folder: str, **options: Any) -> dict[str, Any]:
    return node(
        "KilnLoadDataset",
        **{"folder": folder, "repeats": 1, "recursive": False, "on_bad_file": "stop", **options},
    )


def encode(source: list[Any], **options: Any) -> dict[str, Any]:
    sockets = {"vae": ["vae", 0], "clip": ["clip", 0]}
    return node("KilnEncodeDataset", dataset=source, **sockets, **{"resolution": 64, **options})


def workshop(folder: str, **load_options: Any) -> Prompt:
    """Every step there is, from a folder to encoded items."""
    return {
        **loaders(),
        "dataset": load(folder, **load_options),
        "captions": node(
            "KilnCaptionTemplate",
            dataset=["dataset", 0],
            template="{caption}, {light}",
            values="light: soft light | hard light",
            trigger_word="zorb",
            missing="drop clause",
            seed=0,
        ),
        "forms": node(
            "KilnCaptionAugment", dataset=["captions", 0], dropout=0.1, shuffle_tags=True, keep_first=1
        ),
        "variants": node(
            "KilnAugmentDataset",
            dataset=["forms", 0],
            crop_min_scale=0.8,
            horizontal_flip=0.5,
            color_jitter=0.2,
            gaussian_noise=50.0,
            variants=2,
            seed=0,
        ),
        "report": node("KilnDatasetReport", dataset=["variants", 0], resolution=64),
        "encoded": encode(["variants", 0]),
        "shown": node("PreviewAny", source=["report", 0]),
        "sheet": node("SaveImage", images=["report", 1], filename_prefix="test/sheet"),
    }


def text_of(outputs: dict[str, Any], name: str) -> str:
    return str(outputs[name]["text"][0])


def test_the_whole_workshop(run_graph: RunGraph, host: RunningHost) -> None:
    graph = {**workshop("tiny_concept", validation_share=0.1), **training(steps=3), **saved()}
    outputs = run_graph(graph)
    assert "18 subject" in text_of(outputs, "dataset") and "2 validation" in text_of(outputs, "dataset")
    assert text_of(outputs, "captions").count("light") == 20
    assert "10% of the samples without a caption" in text_of(outputs, "forms")
    assert outputs["variants"]["images"] and "2 variants of each item" in text_of(outputs, "variants")
    report = text_of(outputs, "report")
    assert report.startswith("# Dataset report\n") and text_of(outputs, "shown") == report
    assert "| items trained on | 18 |" in report and "| validation | 2 | held out | 1 |" in report
    assert outputs["report"]["images"]
    (sheet,) = outputs["sheet"]["images"]
    assert Image.open(host.base / "output" / sheet["subfolder"] / sheet["filename"]).width > 1000
    encoded = text_of(outputs, "encoded")
    assert "20 items, latents 16x1x8x8 (20)" in encoded and "steps per epoch: 18 at batch size 1" in encoded
    assert text_of(outputs, "train").startswith("done: 3 steps")


def test_a_hostile_folder_stops_with_a_name_or_is_skipped(
    run_graph: RunGraph, client: HostClient, make_folder: MakeFolder
) -> None:
    folder = make_folder("hostile")
    good = hostile_folder(folder)
    with pytest.raises(
        GraphFailed, match=r"node dataset \(KilnLoadDataset\): .*album of pages\.tif holds 3 pictures"
    ):
        run_graph(workshop("hostile", recursive=True))
    outputs = run_graph(workshop("hostile", recursive=True, on_bad_file="skip"))
    assert f"{len(good)} images, 4 with captions" in text_of(outputs, "dataset")
    report = text_of(outputs, "report")
    for name in ("huge.png", "one pixel.png", "truncated.jpg", "latin1 caption.txt", "no frames.mp4", "loop"):
        assert name in report
    assert client.get_json("/system_stats")


def test_unchanged_is_not_encoded_again_and_one_caption_is(
    run_graph: RunGraph, make_folder: MakeFolder
) -> None:
    folder = make_folder("changing")
    for number in range(6):
        scene(number, (64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"changing picture {number}")
    graph = {**loaders(), "dataset": load("changing"), "encoded": encode(["dataset", 0])}
    assert "12 of 12 encoded now" in text_of(run_graph(graph), "encoded")
    graph["encoded"] = encode(
        ["dataset", 0], fps=15.0
    )  # stills do not depend on it, the host's own cache does
    assert "0 of 12 encoded now" in text_of(run_graph(graph), "encoded")
    (folder / "3.txt").write_text("something else")
    assert "1 of 12 encoded now" in text_of(run_graph(graph), "encoded")


def test_stills_clips_and_masks_train_together(run_graph: RunGraph, make_folder: MakeFolder) -> None:
    folder = make_folder("moving")
    for number in range(2):
        scene(number, (64, 64)).save(folder / f"{number}.png")
        clip(folder / f"clip{number}.mp4", frames=24, size=(64, 64))
        (folder / f"clip{number}.txt").write_text("it grows brighter")
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    (folder / "masks").mkdir()
    half.save(folder / "masks" / "0.png")
    half.save(folder / "masks" / "clip1.png")
    graph = {
        **loaders(),
        "dataset": load("moving"),
        "encoded": encode(["dataset", 0], max_frames=5),
        **training(steps=6, batch_size=2),
        **saved(),
    }
    outputs = run_graph(graph)
    assert "2 images and 2 clips" in text_of(outputs, "dataset") and "2 with a mask" in text_of(
        outputs, "dataset"
    )
    assert "latents 16x1x8x8 (2), 16x2x8x8 (2)" in text_of(outputs, "encoded")
    assert "64x64, 5 frames: 2 items" in text_of(outputs, "encoded")
    assert text_of(outputs, "train").startswith("done: 6 steps")


def test_roles_and_weights(run_graph: RunGraph) -> None:
    graph = {
        **loaders(),
        "subject": load("tiny_concept"),
        "wider": load("tiny_concept", repeats=2),
        "held": load("tiny_concept"),
        "mix": node(
            "KilnCombineDatasets",
            dataset_1=["subject", 0],
            weight_1=1.0,
            role_1="subject",
            dataset_2=["wider", 0],
            weight_2=0.5,
            role_2="regularisation",
            dataset_3=["held", 0],
            weight_3=1.0,
            role_3="validation",
            regularisation_loss_weight=0.5,
        ),
        "encoded": encode(["mix", 0]),
        **training(steps=2),
        **saved(),
    }
    outputs = run_graph(graph)
    assert "80 samples in an epoch: 50% subject, 50% regularisation" in text_of(outputs, "mix")
    assert text_of(outputs, "train").startswith("done: 2 steps")


def test_images_of_the_graph(run_graph: RunGraph) -> None:
    graph = {
        **loaders(),
        "files": node("LoadImageTextDataSetFromFolder", folder="tiny_concept"),
        "dataset": node("KilnImagesToDataset", images=["files", 0], captions=["files", 1]),
        "encoded": encode(["dataset", 0]),
        **training(steps=2),
        **saved(),
    }
    outputs = run_graph(graph)
    assert "20 images, 20 with captions" in text_of(outputs, "dataset")
    assert text_of(outputs, "train").startswith("done: 2 steps")


def test_the_hosts_own_dataset_moves_over_by_swapping_one_node(run_graph: RunGraph) -> None:
    made = node(
        "MakeTrainingDataset", images=["files", 0], vae=["vae", 0], clip=["clip", 0], texts=["files", 1]
    )
    graph = {
        **loaders(),
        "files": node("LoadImageTextDataSetFromFolder", folder="tiny_concept"),
        "made": made,
        "encoded": node("KilnEncodedFromLatents", latents=["made", 0], positive=["made", 1]),
        **training(steps=2),
        **saved(),
    }
    outputs = run_graph(graph)
    assert "20 items, latents 16x1x8x8 (20)" in text_of(outputs, "encoded")
    assert text_of(outputs, "train").startswith("done: 2 steps")


def test_one_latent_batch_and_one_conditioning(run_graph: RunGraph) -> None:
    graph = {
        **loaders(),
        "text": node("CLIPTextEncode", clip=["clip", 0], text="a red circle"),
        "empty": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=3),
        "encoded": node("KilnEncodedFromLatents", latents=["empty", 0], positive=["text", 0]),
        **training(steps=1, batch_size=2),
        **saved(),
    }
    outputs = run_graph(graph)
    assert "3 items, latents 16x2x8x8 (3)" in text_of(outputs, "encoded")
    two = node("ConditioningCombine", conditioning_1=["text", 0], conditioning_2=["text", 0])
    graph |= {
        "two": two,
        "encoded": node("KilnEncodedFromLatents", latents=["empty", 0], positive=["two", 0]),
    }
    with pytest.raises(GraphFailed, match="There are 3 latents and 2 conditionings"):
        run_graph(graph)


def test_batches_of_stills_are_encoded_like_single_ones(
    run_graph: RunGraph, host: RunningHost, make_folder: MakeFolder
) -> None:
    """The host takes a batch for a clip unless told otherwise: our latents must be those of its own VAE Encode."""
    from safetensors.torch import load_file

    def latents() -> set[Path]:
        return set((host.base / "user" / "__lora_kiln" / "encoded" / "latents").rglob("*.safetensors"))

    folder = make_folder("batchwise")
    for number in range(8):
        scene(100 + number, (64, 64)).save(folder / f"{number}.png")
    before = latents()
    graph = {**loaders(), "dataset": load("batchwise"), "encoded": encode(["dataset", 0])}
    with pytest.raises(GraphFailed, match="8 of 8 items have no caption"):
        run_graph(graph)
    run_graph({**graph, "encoded": encode(["dataset", 0], without_captions=True)})
    ours = latents() - before
    theirs = {
        **loaders(),
        "image": node("LoadImage", image="batchwise/5.png"),
        "encode": node("VAEEncode", pixels=["image", 0], vae=["vae", 0]),
        "text": node("CLIPTextEncode", clip=["clip", 0], text="x"),
        "encoded": node("KilnEncodedFromLatents", latents=["encode", 0], positive=["text", 0]),
        **training(steps=1),
        **saved(),
    }
    run_graph(theirs)
    (single,) = latents() - before - ours
    wanted = load_file(single)["latent"]
    differences = sorted(float((load_file(p)["latent"] - wanted).abs().max()) for p in ours)
    assert len(ours) == 8 and differences[0] < 1e-4 and differences[1] > 0.1
