"""The runs of given.py: `python given_worker.py OPTIONS.json`, in the host's folder; a line of JSON each."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_process import REPO, enter_host, say

OPTIONS = json.loads(sys.argv[1])
sys.stdout = sys.stderr  # the host prints; our parent reads the true stdout
enter_host("cpu")
sys.path.append(str(REPO / "tests"))

import av
import comfy.sd
import numpy as np
import torch
from comfy_extras import nodes_wan
from lora_kiln.nodes.host.encoding.encoder import HostEncoder  # type: ignore[import-not-found]
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.lora import apply_lora  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig, OptimizerConfig, TrainConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.buckets import BucketOptions  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.encode import encode_dataset  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.scan import ScanOptions, scan_folder  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import export_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.lora_weights import LoraWeights  # type: ignore[import-not-found]
from PIL import Image
from safetensors.torch import load_file
from tiny_wan import check, world

FRAMES, MOVED = 5, 2.0  # of a clip; pixels a frame
SIZE = {"width": world.SIZE, "height": world.SIZE, "batch_size": 1}
Scenes = list[tuple[world.Scene, world.Scene]]


def with_inputs(channels: int) -> Any:
    """The tiny Wan with further input channels, as an image-to-video model or one for Fun control has them: what comes
    in there reaches the tokens through random weights that no LoRA changes, and means nothing to the blocks yet."""
    state = load_file(check.HERE / "models" / "tiny_wan.safetensors")
    known = state["patch_embedding.weight"]
    more = torch.randn(len(known), channels, *known.shape[2:], generator=torch.Generator().manual_seed(0))
    state["patch_embedding.weight"] = torch.cat([known, more * known.std()], dim=1)
    return comfy.sd.load_diffusion_model_state_dict(state)


def pairs(count: int, seed: int) -> Scenes:
    """Scenes, and the same in another colour."""
    rng, scenes = np.random.default_rng(seed), world.random_scenes(count, seed)
    others = [[c for c in world.COLOURS if c != scene.colour] for scene in scenes]
    return [(s, replace(s, colour=str(rng.choice(o)))) for s, o in zip(scenes, others, strict=True)]


def moving(count: int, seed: int) -> Scenes:
    """Where a shape begins and where it has moved to, to the right."""
    first = [replace(s, radius=14.0, cx=26.0 + s.cx % 4) for s in world.random_scenes(count, seed)]
    return [(s, replace(s, cx=s.cx + MOVED * (FRAMES - 1))) for s in first]


def write_pairs(folder: Path, scenes: Scenes) -> ScanOptions:
    """Targets with their instruction, and what they are made from."""
    for number, (before, after) in enumerate(scenes):
        for place, scene in (("set", after), ("before", before)):
            (folder / place).mkdir(exist_ok=True)
            Image.fromarray(scene.image()).save(folder / place / f"{number:03}.png")
        (folder / "set" / f"{number:03}.txt").write_text(f"make it {after.colour}", "utf-8")
    return ScanOptions(control_folders=(folder / "before",))


def write_clips(folder: Path, scenes: Scenes) -> ScanOptions:
    """Clips whose caption says nothing of what they show."""
    (folder / "set").mkdir()
    for number, (first, _) in enumerate(scenes):
        path = folder / "set" / f"{number:03}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=16)
            stream.width, stream.height, stream.pix_fmt = world.SIZE, world.SIZE, "yuv420p"
            stream.bit_rate = 4_000_000
            for frame in range(FRAMES):
                picture = replace(first, cx=first.cx + MOVED * frame).image()
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        path.with_suffix(".txt").write_text("it moves", "utf-8")
    return ScanOptions()


def trained(model: Any, loaded: check.Loaded, folder: Path, scan: ScanOptions, **given: Any) -> Any:
    """The MODEL with the LoRA on, by way of files, the encoder and the engine."""
    dataset = scan_folder(folder / "set", scan)
    with torch.inference_mode():
        encoder = HostEncoder(loaded.vae, loaded.clip, **given)
        encoded = encode_dataset(
            dataset, encoder, folder / "cache", BucketOptions(resolution=world.SIZE, max_frames=FRAMES)
        )
    config = TrainConfig(
        steps=OPTIONS["steps"],
        batch_size=8,
        checkpoint_every=0,
        adapter=AdapterConfig(rank=32, alpha=32, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=0.002),
    )
    denoiser = HostDenoiser(model, (8, *encoded.items[0].shape))
    result = train(denoiser, encoded, config, run_folder=folder / "run", weights=host_weights)
    return apply_lora(model, None, LoraWeights(export_adapter(result.adapter, config.adapter), {}), 1.0)[0]


def draw(model: Any, loaded: check.Loaded, prompt: str, give: Callable[..., Any], seed: int) -> np.ndarray:
    """(F, 64, 64, 3) uint8: through the node that gives the model its picture, KSampler and VAEDecode."""
    import nodes

    with torch.inference_mode():
        texts = [nodes.CLIPTextEncode().encode(loaded.clip, text)[0] for text in (prompt, "")]
        positive, negative, latent = give(*texts, loaded.vae, **SIZE).result
        (drawn,) = nodes.common_ksampler(
            model, seed, check.STEPS, check.CFG, check.SAMPLER, check.SCHEDULER, positive, negative, latent
        )
        (images,) = nodes.VAEDecode().decode(loaded.vae, drawn)
    return np.stack([check.to_bytes(image) for image in images])


def pixels(scene: world.Scene) -> torch.Tensor:
    return torch.from_numpy(scene.image()).float()[None] / 255


def edits(model: Any, loaded: check.Loaded, scenes: Scenes) -> list[np.ndarray]:
    return [
        draw(
            model,
            loaded,
            f"make it {after.colour}",
            lambda *c, before=before, **s: nodes_wan.WanFunControlToVideo.execute(
                *c, **s, length=1, control_video=pixels(before)
            ),
            seed,
        )
        for seed, (before, after) in enumerate(scenes)
    ]


def clips(model: Any, loaded: check.Loaded, scenes: Scenes) -> list[np.ndarray]:
    return [
        draw(
            model,
            loaded,
            "it moves",
            lambda *c, first=first, **s: nodes_wan.WanImageToVideo.execute(
                *c, **s, length=FRAMES, start_image=pixels(first)
            ),
            seed,
        )
        for seed, (first, _) in enumerate(scenes)
    ]


def figures(drawn: Sequence[np.ndarray], scenes: Sequence[world.Scene], frame: int) -> dict[str, float]:
    """How far one frame of each is the scene: shares of 0-1, and decibels."""
    images, wanted = [d[frame] for d in drawn], [s.image() for s in scenes]
    masks = [(world.foreground(i), world.foreground(w)) for i, w in zip(images, wanted, strict=True)]
    there = [m is not None and w is not None and (m & w).sum() > 0.75 * (m | w).sum() for m, w in masks]
    return {
        "shape": world.shape_accuracy(images, [s.shape for s in scenes]),
        "colour": world.colour_accuracy(images, [s.colour for s in scenes]),
        "background": world.share(
            world.background_of(i) == s.background for i, s in zip(images, scenes, strict=True)
        ),
        "in its place": world.share(map(bool, there)),
        "decibels": check.decibels(np.stack(images), np.stack(wanted)),
    }


def sheet(scenes: Scenes, before: list[np.ndarray], after: list[np.ndarray], name: str) -> None:
    """What was given, what was drawn without and with the LoRA; rows of twelve."""
    shown = [[scene.image() for scene, _ in scenes], [b[-1] for b in before], [a[0] for a in after]]
    labels = ["given", "without", "with"]
    if len(after[0]) > 1:
        shown.append([a[-1] for a in after])
        labels[2:] = ["first", "last"]
    images = [image for row in shown for image in row[:12]]
    check.contact_sheet(images, [f"{w} {i}" for w in labels for i in range(min(12, len(scenes)))], 12).save(
        Path(OPTIONS["sheets"]) / f"{name}.png"
    )


def main() -> None:
    loaded = check.load()
    for name, channels, make, write, show, given in (
        ("edit", 32, pairs, write_pairs, edits, {"controls": "Wan Fun control"}),
        ("first frame", 20, moving, write_clips, clips, {"first_frame": "first frame"}),
    ):
        if name not in OPTIONS["which"]:
            continue
        model, unseen = with_inputs(channels), make(OPTIONS["pictures"], seed=99)
        with tempfile.TemporaryDirectory() as place:
            after = show(
                trained(
                    model, loaded, Path(place), write(Path(place), make(OPTIONS["items"], seed=5)), **given
                ),
                loaded,
                unseen,
            )
        before = show(model, loaded, unseen)
        wanted = [last if name == "edit" else first for first, last in unseen]
        found = {"before": figures(before, wanted, 0), "after": figures(after, wanted, 0)}
        if name == "first frame":
            found["after, last frame"] = figures(after, [last for _, last in unseen], FRAMES - 1)
        if OPTIONS["sheets"]:
            sheet(unseen, before, after, name.replace(" ", "_"))
        say({"what": name, **found})


if __name__ == "__main__":
    main()
