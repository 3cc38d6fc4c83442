"""One run of slider.py, in the host's folder: `python slider_worker.py OPTIONS`. Prints what it draws."""

from __future__ import annotations

import json
import sys
import tempfile
import time
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
from lora_kiln.nodes.host.encoding.encoder import encode_caption  # type: ignore[import-not-found]
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.lora import apply_lora  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig, OptimizerConfig, TrainConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.slider import SliderTargets, slider_dataset  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import export_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.lora_weights import LoraWeights  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.job import Job  # type: ignore[import-not-found]
from tiny_wan import check, world

CFG = 3.0  # as the demo samples


def drawn_latents(loaded: check.Loaded, prompt: str, count: int) -> dict[str, Any]:
    """What the model draws for the target, a LATENT."""
    import nodes

    (positive,) = nodes.CLIPTextEncode().encode(loaded.clip, prompt)
    (negative,) = nodes.CLIPTextEncode().encode(loaded.clip, "")
    empty = {"samples": torch.zeros(count, 16, 1, world.SIZE // 8, world.SIZE // 8)}
    (latent,) = nodes.common_ksampler(
        loaded.model, 1, check.STEPS, CFG, check.SAMPLER, check.SCHEDULER, positive, negative, empty
    )
    return latent


def train_slider(loaded: check.Loaded, folder: Path) -> tuple[Any, list[float], float]:
    """The LoRA, its losses, and the seconds of training."""
    targets = SliderTargets(
        OPTIONS["target"],
        OPTIONS["positive"],
        OPTIONS["negative"],
        tuple(OPTIONS["preserve"]),
        OPTIONS["guidance"],
    )
    with torch.inference_mode():
        latent = drawn_latents(loaded, OPTIONS["target"], OPTIONS["latents"])
        dataset = slider_dataset(
            targets, latent, lambda text: encode_caption(loaded.clip, text), folder / "encoded"
        )
    config = TrainConfig(
        steps=OPTIONS["steps"],
        batch_size=OPTIONS["batch_size"],
        seed=OPTIONS["seed"],
        checkpoint_every=0,
        adapter=AdapterConfig(rank=OPTIONS["rank"], alpha=float(OPTIONS["rank"])),
        optimizer=OptimizerConfig(learning_rate=OPTIONS["learning_rate"]),
    )
    denoiser = HostDenoiser(loaded.model, (config.batch_size, *dataset.items[0].shape))
    job = Job(
        lambda controls: train(
            denoiser, dataset, config, run_folder=folder / "run", weights=host_weights, controls=controls
        )
    )
    started = time.perf_counter()
    job.start()
    job.wait()
    done = job.result()
    return (
        LoraWeights(export_adapter(done.adapter, config.adapter), {}),
        done.losses,
        time.perf_counter() - started,
    )


def redness(image: np.ndarray) -> float:
    """Red less blue of the shape's median colour, -255..255."""
    mask = world.foreground(image)
    if mask is None:
        return float("nan")
    red, _, blue = np.median(image[mask].astype(float), axis=0)
    return float(red - blue)


def brightness(image: np.ndarray) -> float:
    """Mean of the background's median colour, 0..255."""
    mask = world.foreground(image)
    return float("nan") if mask is None else float(np.median(image[~mask].astype(float), axis=0).mean())


MEASURES = {"red less blue": redness, "background": brightness}


def main() -> None:
    loaded = check.load()
    with tempfile.TemporaryDirectory() as name:
        lora, losses, seconds = train_slider(loaded, Path(name))
    found: dict[str, Any] = {"seconds": seconds, "losses": losses, "strengths": {}}
    rows: dict[str, list[np.ndarray]] = {shape: [] for shape in world.BASE_SHAPES}
    measure = MEASURES[OPTIONS["measure"]]
    for strength in OPTIONS["strengths"]:
        model = apply_lora(loaded.model, None, lora, strength)[0] if strength else loaded.model
        values, kept = [], []
        for shape in world.BASE_SHAPES:
            prompt = OPTIONS["draw"].format(shape=shape)
            images = [
                check.draw(replace(loaded, model=model), prompt, seed, cfg=CFG)
                for seed in range(OPTIONS["samples"])
            ]
            rows[shape].append(images[0])
            values += [measure(image) for image in images]
            kept += [world.shape_of(image)[0] == shape for image in images]
        found["strengths"][f"{strength:g}"] = {
            OPTIONS["measure"]: float(np.nanmean(values)),
            "no shape": int(np.isnan(values).sum()),
            "shape kept": sum(kept) / len(kept),
        }
    if OPTIONS["sheet"]:
        every = [image for images in rows.values() for image in images]
        labels = [f"{s} {k:g}" for s in rows for k in OPTIONS["strengths"]]
        check.contact_sheet(every, labels, columns=len(OPTIONS["strengths"])).save(OPTIONS["sheet"])
    say(found)


if __name__ == "__main__":
    main()
