"""The runs of item_losses.py: `python item_losses_worker.py OPTIONS.json`, in the host's folder; a line a run."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
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
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig, OptimizerConfig, TrainConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.from_graph import encoded_from_latents  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.checkpoint import read_state  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.checkpoint_list import newest_checkpoint  # type: ignore[import-not-found]
from tiny_wan import check, world


def scenes(seed: int) -> list[tuple[Any, str]]:
    """(picture, caption) of the concept, every look of it in turn."""
    drawn = world.concept_scenes(OPTIONS["items"], seed=seed)
    return [(scene.image(), scene.caption()) for scene in drawn]


def spoil(items: list[tuple[Any, str]], how: str, rng: np.random.Generator) -> list[tuple[Any, str]]:
    """The same with the first item made wrong."""
    picture, caption = items[0]
    words = caption.split()
    if how == "colour":  # the caption names another one
        words[1] = str(rng.choice([c for c in world.COLOURS if c != words[1]]))
    if how == "shape":  # the caption is of another picture
        words[2] = str(rng.choice(world.BASE_SHAPES))
    if how == "noise":  # the picture is damaged
        picture = rng.integers(0, 256, picture.shape).astype(np.uint8)
    return [(picture, " ".join(words)), *items[1:]]


def one_run(loaded: check.Loaded, seed: int, how: str) -> dict[str, Any]:
    """What the run's newest checkpoint says of its items; item 0 is the one that is wrong."""
    import nodes

    latents, texts = [], []
    with torch.inference_mode():
        for picture, caption in spoil(scenes(seed), how, np.random.default_rng(seed)):
            pixels = torch.from_numpy(picture).float()[None] / 255
            latents.append({"samples": loaded.vae.encode(pixels)})
            texts.append(nodes.CLIPTextEncode().encode(loaded.clip, caption)[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = encoded_from_latents(latents, texts, folder / "items")
        if how == "repeats":
            first = dataclasses.replace(dataset.items[0], repeats=10)
            dataset = dataclasses.replace(dataset, items=(first, *dataset.items[1:]))
        config = TrainConfig(
            steps=OPTIONS["steps"],
            batch_size=OPTIONS["batch_size"],
            seed=seed,
            checkpoint_every=0,
            adapter=AdapterConfig(rank=16, alpha=16, dropout=0.0),
            optimizer=OptimizerConfig(learning_rate=0.002),
        )
        denoiser = HostDenoiser(loaded.model, (OPTIONS["batch_size"], *dataset.items[0].shape))
        result = train(denoiser, dataset, config, run_folder=folder / "run", weights=host_weights)
        newest = newest_checkpoint(folder / "run")
        assert newest is not None
        return {"seed": seed, "how": how, "items": read_state(newest).item_losses, "advice": result.advice}


def main() -> None:
    loaded = check.load()
    for seed in range(OPTIONS["runs"]):
        for how in OPTIONS["kinds"]:
            say(one_run(loaded, seed, how))


if __name__ == "__main__":
    main()
