"""One contestant of step_time.py: `python step_worker.py CONTESTANT TASK.json`, in the host's folder.

Prints {"ready"}, then a list of seconds for every `go N`, then its peak memory when stdin ends.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_process import Memory, Over, Task, Turns, enter_host, load_model, make_latent, make_text, say

CONTESTANT, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
turns = Turns()
sys.stdout = sys.stderr  # the host prints; our parent reads the true stdout
enter_host(task.device)

import comfy_extras.nodes_train as host_training
import torch
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.config import (  # type: ignore[import-not-found]
    AdapterConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from lora_kiln.trainer.dataset.from_graph import encoded_from_latents  # type: ignore[import-not-found]
from lora_kiln.trainer.events import StepEvent  # type: ignore[import-not-found]
from lora_kiln.trainer.loop import objective
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.job import Job  # type: ignore[import-not-found]
from token_route import route_middle
from train_node import host_inputs, input_names

FOREVER = 1_000_000  # steps: the parent says when it is over
LAYERS = r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])"


def ours(model: Any, folder: Path, what: str = "") -> None:
    """The whole engine: loop, optimizer, clipping, events. what: "class" has a text, too, or it is a "slider"."""
    dataset = encoded_from_latents(
        [{"samples": make_latent(task)}], [[[make_text(task), {}]]], folder / "items"
    )
    (item,) = dataset.items
    if what == "class":
        dataset = replace(dataset, items=(replace(item, class_texts=(item.text_path,)),))
    elif what == "slider":
        item = replace(item, slider_ends=(item.text_path, item.text_path), slider_guidance=1.0)
        dataset = replace(dataset, items=(item,), slider="a slider")
    config = TrainConfig(
        steps=FOREVER,
        checkpoint_every=0,
        adapter=AdapterConfig(rank=task.rank, alpha=task.rank, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
    )

    def on_event(event: Any) -> None:
        if isinstance(event, StepEvent):
            turns.tick()

    denoiser = HostDenoiser(model, tuple(make_latent(task).shape))
    turns.wait_for_go()
    job = Job(  # on a thread, as the node does it
        lambda controls: train(
            denoiser,
            dataset,
            config,
            run_folder=folder / "run",
            weights=host_weights,
            controls=controls,
            emit=on_event,
        )
    )
    job.start()
    job.wait()
    job.result()


def floor(model: Any, folder: Path) -> None:
    """One forward pass of the frozen model; the parent doubles it."""
    denoiser = HostDenoiser(model, tuple(make_latent(task).shape))
    noised, text = _noised_batch(denoiser)
    turns.wait_for_go()
    with denoiser.session(), torch.no_grad():
        while True:
            denoiser.forward(noised.noisy, noised.timestep, text)
            turns.tick()


def peft(model: Any, folder: Path) -> None:
    """peft's own layers in the same network, torch's fused AdamW, a plain loop."""
    import peft as library

    denoiser = HostDenoiser(model, tuple(make_latent(task).shape))
    noised, text = _noised_batch(denoiser)
    turns.wait_for_go()
    with denoiser.session():
        library.inject_adapter_in_model(
            library.LoraConfig(r=task.rank, lora_alpha=task.rank, target_modules=LAYERS), denoiser.module
        )
        parameters = [p for p in denoiser.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        while True:
            answer = denoiser.forward(noised.noisy, noised.timestep, text)
            objective.loss_per_item(answer, noised.target, None, ObjectiveConfig()).mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            turns.tick()


def _noised_batch(denoiser: Any) -> tuple[Any, dict[str, Any]]:
    latents = denoiser.prepare_latents(make_latent(task).to(denoiser.device))
    draws = torch.Generator().manual_seed(3)
    noise = torch.randn(latents.shape, generator=draws).to(latents)
    noised = objective.add_noise(denoiser, latents, noise, torch.tensor([0.7], device=latents.device))
    return noised, {"c_crossattn": make_text(task).to(denoiser.device)}


def host(model: Any, folder: Path, **options: Any) -> None:
    """The host's TrainLoraNode; it moves its bar once a step, which is where we stand."""

    class Bar:
        def __init__(self, total: int) -> None:
            turns.wait_for_go()

        def update(self, value: int) -> None:
            turns.tick()

    host_training.ProgressBar = Bar
    precision = "fp32" if task.device == "cpu" else "bf16"
    inputs = host_inputs(
        host_training.TrainLoraNode,
        model=model,
        # Two items: on 0.3.75 the node crashes when it is given a single one
        latents=[{"samples": make_latent(task)}] * 2,
        positive=[[[make_text(task), {}]]] * 2,
        steps=FOREVER,
        learning_rate=1e-4,
        rank=task.rank,
        training_dtype=precision,
        lora_dtype=precision,
        **options,
    )
    with torch.inference_mode():  # as the host runs its nodes
        host_training.TrainLoraNode.execute(**inputs)


CONTESTANTS: dict[str, Callable[[Any, Path], None]] = {
    "floor": floor,
    "ours": ours,
    "preserving": lambda m, f: ours(m, f, "class"),
    "slider": lambda m, f: ours(m, f, "slider"),
    "routed": lambda m, f: ours(route_middle(m, 0.5), f),
    "peft": peft,
    "host_default": lambda m, f: host(m, f, gradient_checkpointing=True),
    "host_weight": lambda m, f: host(m, f, gradient_checkpointing=False),
    "host_bypass": lambda m, f: host(m, f, gradient_checkpointing=False, bypass_mode=True),
}


def main() -> None:
    if CONTESTANT == "host_bypass" and "bypass_mode" not in input_names(host_training.TrainLoraNode):
        say({"absent": "this host has no bypass mode"})
        return
    model = load_model(task)
    memory = Memory(task.device)
    if task.device != "cpu":
        turns.use_cuda()
    with tempfile.TemporaryDirectory() as folder:
        try:
            CONTESTANTS[CONTESTANT](model, Path(folder))
        except Over:
            say({"peak_bytes": memory.peak()})


if __name__ == "__main__":
    main()
