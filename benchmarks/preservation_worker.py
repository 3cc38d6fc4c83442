"""One run of preservation.py, in the host's folder: `python preservation_worker.py OPTIONS`. Prints what it draws."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_process import REPO, enter_host, say

OPTIONS = json.loads(sys.argv[1])
sys.stdout = sys.stderr  # the host prints; our parent reads the true stdout
enter_host("cpu")
sys.path.append(str(REPO / "tests"))

import numpy as np
import torch
from lora_kiln.nodes.host.encoding.encoder import HostEncoder  # type: ignore[import-not-found]
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.lora import apply_lora  # type: ignore[import-not-found]
from lora_kiln.trainer.config import (  # type: ignore[import-not-found]
    AdapterConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from lora_kiln.trainer.dataset.buckets import BucketOptions  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.class_words import read_class_words  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.encode import encode_dataset  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.from_graph import images_to_dataset  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import export_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.lora_weights import LoraWeights  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.job import Job  # type: ignore[import-not-found]
from tiny_wan import check, world

WORD = "quib"
"""The new shape, a T: neither the model nor its text encoder knows shape or word."""

CFG = 3.0  # as the demo samples


def new_shape(colour: str, background: str, cx: float, cy: float, radius: float) -> np.ndarray:
    """(64, 64, 3) uint8; bar and stem are a third of the width."""
    rows, columns = np.mgrid[0 : world.SIZE, 0 : world.SIZE] + 0.5
    dx, dy, arm = columns - cx, rows - cy, radius / 3
    bar = np.minimum(radius - np.abs(dx), arm - np.abs(dy + radius - arm))
    stem = np.minimum(arm - np.abs(dx), radius - np.abs(dy))
    cover = np.clip(np.maximum(bar, stem) + 0.5, 0, 1)[..., None]
    front, back = np.array(world.COLOURS[colour], float), np.array(world.BACKGROUNDS[background], float)
    return np.rint(cover * front + (1 - cover) * back).astype(np.uint8)


def template(image: np.ndarray) -> np.ndarray:  # (32, 32) bool
    mask = world.foreground(image)
    assert mask is not None
    return world.crop_to_shape(mask)


TEMPLATES = {
    WORD: template(new_shape("red", "white", 32, 32, 24)),
    **{shape: world.template(shape) for shape in world.BASE_SHAPES},
}


def shape_of(image: np.ndarray) -> str:
    """The shape that an image clearly shows, or "", by the rule of tiny_wan.world with one shape more."""
    mask = world.foreground(image)
    if mask is None:
        return ""
    crop = world.crop_to_shape(mask)
    overlaps = {name: (crop & t).sum() / max(1, (crop | t).sum()) for name, t in TEMPLATES.items()}
    best, second = sorted(overlaps, key=lambda name: overlaps[name], reverse=True)[:2]
    clear = overlaps[best] >= world.MIN_OVERLAP and overlaps[best] - overlaps[second] >= world.MIN_LEAD
    return best if clear else ""


def encode(loaded: check.Loaded, folder: Path) -> Any:
    """20 pictures of the new shape as an EncodedDataset, through every colour and background."""
    scenes = world.concept_scenes(20, seed=OPTIONS["data_seed"])
    pictures = [new_shape(s.colour, s.background, s.cx, s.cy, s.radius) / 255.0 for s in scenes]
    captions = [world.caption(WORD, s.colour, s.background) for s in scenes]
    dataset = images_to_dataset([p.astype(np.float32) for p in pictures], captions, folder / "pictures")
    dataset = dataset.with_class_words(read_class_words(OPTIONS["class_word"], WORD))
    return encode_dataset(
        dataset, HostEncoder(loaded.vae, loaded.clip), folder / "encoded", BucketOptions(resolution=64)
    )


def train_lora(model: Any, dataset: Any, folder: Path) -> Any:
    config = TrainConfig(
        steps=OPTIONS["steps"],
        batch_size=8,
        seed=OPTIONS["seed"],
        checkpoint_every=0,
        adapter=AdapterConfig(rank=16, alpha=16.0),
        optimizer=OptimizerConfig(learning_rate=OPTIONS["learning_rate"]),
        objective=ObjectiveConfig(preservation_weight=OPTIONS["weight"]),
    )
    denoiser = HostDenoiser(model, (8, *dataset.items[0].shape))
    job = Job(
        lambda controls: train(
            denoiser, dataset, config, run_folder=folder / "run", weights=host_weights, controls=controls
        )
    )
    job.start()
    job.wait()
    return LoraWeights(export_adapter(job.result().adapter, config.adapter), {})


def drawn(loaded: check.Loaded, shape: str) -> tuple[float, list[np.ndarray], Counter[str]]:
    """Share of the pictures that show the shape that was asked for, the pictures, and what they show."""
    pairs = [(c, b) for b in world.BACKGROUNDS for c in world.COLOURS]
    images = [
        check.draw(loaded, world.caption(shape, *pairs[seed % len(pairs)]), seed, cfg=CFG)
        for seed in range(OPTIONS["samples"])
    ]
    seen = [shape_of(image) for image in images]
    return sum(s == shape for s in seen) / len(seen), images, Counter(seen)


def main() -> None:
    loaded = check.load()
    with tempfile.TemporaryDirectory() as name:
        with torch.inference_mode():
            dataset = encode(loaded, Path(name))
        started = time.perf_counter()
        lora = train_lora(loaded.model, dataset, Path(name))
        found: dict[str, Any] = {"seconds": time.perf_counter() - started, "scores": {}}
        for strength in OPTIONS["strengths"]:
            trained = apply_lora(loaded.model, None, lora, strength)[0] if strength else loaded.model
            rows = {}
            for shape in (WORD, *world.BASE_SHAPES):
                score, images, _ = drawn(replace(loaded, model=trained), shape)
                rows[shape] = images
                found["scores"].setdefault(f"{strength:g}", {})[shape] = score
            if OPTIONS["sheet"]:
                every = [image for images in rows.values() for image in images[:10]]
                sheet = check.contact_sheet(every, [s for s, i in rows.items() for _ in i[:10]])
                path = Path(OPTIONS["sheet"])
                sheet.save(path.with_name(f"{path.stem}_{strength:g}.png"))
    say(found)


if __name__ == "__main__":
    main()
