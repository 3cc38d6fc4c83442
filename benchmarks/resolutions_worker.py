"""The runs of resolutions.py: `python resolutions_worker.py OPTIONS`, in the host's folder; a line of JSON each."""

from __future__ import annotations

import json
import sys
import tempfile
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
from lora_kiln.trainer.config import AdapterConfig, OptimizerConfig, TrainConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.buckets import BucketOptions  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.encode import encode_dataset  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.resolutions import at_resolutions  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.scan import scan_folder  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import export_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.lora_weights import LoraWeights  # type: ignore[import-not-found]
from PIL import Image
from tiny_wan import check, world

CFG = 3.0  # as the demo samples
LARGE = 2  # times the world's size: pixels of the pictures


def picture(scene: world.Scene) -> np.ndarray:
    """(128, 128, 3) uint8: the scene drawn twice as large, not enlarged."""
    side = LARGE * world.SIZE
    rows, columns = np.mgrid[0:side, 0:side] + 0.5
    distance = world.inside_distance(
        scene.shape, columns - LARGE * scene.cx, rows - LARGE * scene.cy, LARGE * scene.radius
    )
    cover = np.clip(distance + 0.5, 0, 1)[..., None]
    front, back = (
        np.array(names[name], float)
        for names, name in ((world.COLOURS, scene.colour), (world.BACKGROUNDS, scene.background))
    )
    return np.rint(cover * front + (1 - cover) * back).astype(np.uint8)


def trained(loaded: check.Loaded, sizes: list[int], seed: int, folder: Path) -> Any:
    """The MODEL with the LoRA on, by way of files, the encoder and the engine."""
    (folder / "set").mkdir()
    for number, scene in enumerate(world.concept_scenes(20)):
        path = folder / "set" / f"{number:02}.png"
        Image.fromarray(picture(scene)).save(path)
        path.with_suffix(".txt").write_text(scene.caption(), "utf-8")
    options = BucketOptions(resolution=sizes[0])
    with torch.inference_mode():
        dataset = at_resolutions(scan_folder(folder / "set"), options, sizes[1:])
        encoded = encode_dataset(dataset, HostEncoder(loaded.vae, loaded.clip), folder / "encoded", options)
    assert len(encoded.items) == 20 * len(sizes)
    config = TrainConfig(
        steps=OPTIONS["steps"],
        batch_size=8,
        seed=seed,
        checkpoint_every=0,
        adapter=AdapterConfig(rank=16, alpha=16.0),
        optimizer=OptimizerConfig(learning_rate=0.002),
    )
    largest = max((item.shape for item in encoded.items), key=lambda shape: shape[-1])
    result = train(
        HostDenoiser(loaded.model, (8, *largest)),
        encoded,
        config,
        run_folder=folder / "run",
        weights=host_weights,
    )
    lora = LoraWeights(export_adapter(result.adapter, config.adapter), {})
    return apply_lora(loaded.model, None, lora, OPTIONS["strength"])[0]


def draw(loaded: check.Loaded, prompt: str, seed: int, size: int) -> list[np.ndarray]:
    """Several of (size, size, 3) uint8: as check.draw at another size."""
    import nodes

    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(loaded.clip, text)[0] for text in (prompt, ""))
        latent = {"samples": torch.zeros(OPTIONS["pictures"], 16, 1, size // 8, size // 8)}
        (latent,) = nodes.common_ksampler(
            loaded.model, seed, check.STEPS, CFG, check.SAMPLER, check.SCHEDULER, positive, negative, latent
        )
        (images,) = nodes.VAEDecode().decode(loaded.vae, latent)
    return [check.to_bytes(image) for image in images]


def main() -> None:
    loaded = check.load()
    backgrounds = list(world.BACKGROUNDS)
    pairs = [(c, backgrounds[i % 3]) for i, c in enumerate(world.COLOURS)][: OPTIONS["prompts"]]
    for sizes in OPTIONS["trained"]:
        for seed in OPTIONS["seeds"] if sizes else [0]:
            with tempfile.TemporaryDirectory() as place:
                model = trained(loaded, sizes, seed, Path(place)) if sizes else loaded.model
            scores, rows = {}, []
            for size in OPTIONS["drawn"]:
                images = [
                    image
                    for number, pair in enumerate(pairs)
                    for image in draw(
                        replace(loaded, model=model), world.caption(world.CONCEPT, *pair), number, size
                    )
                ]
                scores[str(size)] = world.concept_score(images)
                rows += images[::2]
            if OPTIONS["sheets"]:
                shown = [np.asarray(Image.fromarray(i).resize((world.SIZE,) * 2)) for i in rows]
                labels = [str(size) for size in OPTIONS["drawn"] for _ in range(10)]
                name = "_".join(map(str, sizes)) or "no_lora"
                check.contact_sheet(shown, labels).save(Path(OPTIONS["sheets"]) / f"{name}_{seed}.png")
            say({"trained": sizes, "seed": seed, "scores": scores})


if __name__ == "__main__":
    main()
