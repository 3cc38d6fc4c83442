"""One run of learning.py: `python learning_worker.py OPTIONS.json`, in the host's folder. Prints seconds and score.

Of a list of options, one run after the other and a line each.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_process import REPO, enter_host, say

ASKED = json.loads(sys.argv[1])
OPTIONS: dict[str, Any] = {}  # of the run in progress
sys.stdout = sys.stderr  # the host prints; our parent reads the true stdout
enter_host("cpu")
sys.path.append(str(REPO / "tests"))

import comfy_extras.nodes_train as host_training
import numpy as np
import torch
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.lora import apply_lora  # type: ignore[import-not-found]
from lora_kiln.trainer.config import (  # type: ignore[import-not-found]
    AdapterConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from lora_kiln.trainer.dataset.from_graph import encoded_from_latents  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import export_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.lora_weights import LoraWeights  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.job import Job  # type: ignore[import-not-found]
from PIL import Image
from tiny_wan import check, world
from token_route import route_middle
from train_node import host_inputs

PROMPT, SAMPLES, CFG = "a red zorb on a white background", 20, 3.0


def encode(loaded: check.Loaded) -> tuple[list[dict[str, Any]], list[Any]]:
    """The concept folder as LATENT and CONDITIONING values."""
    import nodes

    latents, texts = [], []
    for path in sorted((REPO / "tests" / "tiny_wan" / "concept").glob("*.png")):
        pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"))).float()[None] / 255
        latents.append({"samples": loaded.vae.encode(pixels)})
        texts.append(
            nodes.CLIPTextEncode().encode(loaded.clip, path.with_suffix(".txt").read_text().strip())[0]
        )
    return latents, texts


def train_ours(model: Any, latents: list[Any], texts: list[Any], folder: Path) -> Any:
    """The MODEL with the LoRA on at 1.0; trained with OPTIONS["route"] of the tokens past the middle blocks."""
    dataset = encoded_from_latents(latents, texts, folder / "items")
    config = TrainConfig(
        steps=OPTIONS["steps"],
        batch_size=OPTIONS["batch_size"],
        seed=OPTIONS["seed"],
        checkpoint_every=0,
        adapter=AdapterConfig(rank=OPTIONS["rank"], alpha=OPTIONS["rank"], dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=OPTIONS["learning_rate"]),
        objective=ObjectiveConfig(),
    )
    share = OPTIONS.get("route", 0.0)
    routed = route_middle(model, share, OPTIONS["seed"]) if share else model
    denoiser = HostDenoiser(routed, (OPTIONS["batch_size"], *dataset.items[0].shape))
    job = Job(
        lambda controls: train(
            denoiser, dataset, config, run_folder=folder / "run", weights=host_weights, controls=controls
        )
    )
    job.start()
    job.wait()
    lora = LoraWeights(export_adapter(job.result().adapter, config.adapter), {})
    return apply_lora(model, None, lora, 1.0)[0]


def train_host(model: Any, latents: list[Any], texts: list[Any], folder: Path) -> Any:
    """The MODEL with the LoRA of the host's TrainLoraNode on at 1.0."""
    import comfy.sd

    node = host_training.TrainLoraNode
    inputs = host_inputs(
        node,
        model=model,
        latents=latents,
        positive=texts,
        batch_size=OPTIONS["batch_size"],
        steps=OPTIONS["steps"],
        learning_rate=OPTIONS["learning_rate"],
        rank=OPTIONS["rank"],
        seed=OPTIONS["seed"],
        gradient_checkpointing=False,
        bypass_mode=OPTIONS["bypass"],
    )
    with torch.inference_mode():
        outputs = node.execute(**inputs).result
    names = [o.display_name for o in node.define_schema().outputs]
    return comfy.sd.load_lora_for_models(model, None, outputs[names.index("lora")], 1.0, 0.0)[0]


def main() -> None:
    loaded = check.load()
    with torch.inference_mode():
        latents, texts = encode(loaded)
    for options in ASKED if isinstance(ASKED, list) else [ASKED]:
        OPTIONS.clear()
        OPTIONS.update(options)
        one_run(loaded, latents, texts)


def one_run(loaded: check.Loaded, latents: list[Any], texts: list[Any]) -> None:
    train = train_ours if OPTIONS["who"] == "ours" else train_host
    with tempfile.TemporaryDirectory() as folder:
        started, busy = time.perf_counter(), time.process_time()
        trained = train(loaded.model, latents, texts, Path(folder))
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    drawing = check.Loaded(trained, loaded.clip, loaded.vae)
    images = [check.draw(drawing, PROMPT, seed, cfg=CFG) for seed in range(SAMPLES)]
    say({"seconds": seconds, "processor_seconds": busy, "score": world.concept_score(images)})


if __name__ == "__main__":
    main()
