"""One case of memory_plan.py: `python memory_worker.py TASK.json MEMORY.json STEPS`, in the host's folder.

Prints what was planned, what was counted, the peak and the median seconds of a step. The counting runs after the peak
has been read, in a session of its own, so that it does not disturb it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_process import Memory, Task, enter_host, load_model, make_latent, make_text, say

task, memory_options, steps = Task(**json.loads(sys.argv[1])), json.loads(sys.argv[2]), int(sys.argv[3])
sys.stdout = sys.stderr  # the host prints; our parent reads the true stdout
enter_host(task.device)

import torch
from kept import addresses_of_weights, keeping
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.memory.plan import plan_memory  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.config import (  # type: ignore[import-not-found]
    AdapterConfig,
    MemoryConfig,
    OptimizerConfig,
    TrainConfig,
)
from lora_kiln.trainer.dataset.from_graph import encoded_from_latents  # type: ignore[import-not-found]
from lora_kiln.trainer.events import Controls, StepEvent  # type: ignore[import-not-found]
from lora_kiln.trainer.loop import objective
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.trainable import Trainable  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.ledger import size_of  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.placement import Placement  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.job import Job  # type: ignore[import-not-found]
from torch import Tensor

CONFIG = TrainConfig(
    steps=steps,
    checkpoint_every=0,
    adapter=AdapterConfig(rank=task.rank, alpha=task.rank, dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
    memory=MemoryConfig(**memory_options),
)


def train_as_node(model: Any, folder: Path) -> tuple[int, list[float]]:
    """Peak above the loaded model, and the seconds of every step, of a run as the node makes it."""
    dataset = encoded_from_latents(
        [{"samples": make_latent(task)}], [[[make_text(task), {}]]], folder / "items"
    )
    seconds: list[float] = []

    def listen(event: Any) -> None:
        if isinstance(event, StepEvent):
            seconds.append(event.seconds)

    memory = Memory(task.device)

    def work(controls: Controls) -> None:
        train(
            HostDenoiser(model, tuple(make_latent(task).shape)),
            dataset,
            CONFIG,
            run_folder=folder / "run",
            weights=host_weights,
            emit=listen,
            model_file=Path(task.model),
        )

    job = Job(work)
    job.start()
    job.wait()
    job.result()
    return memory.peak(), seconds


def count(model: Any) -> dict[str, int]:
    """Bytes by part, of one step taken apart."""
    denoiser = HostDenoiser(model, tuple(make_latent(task).shape))
    placement = Placement(denoiser, CONFIG.memory, CONFIG.adapter, host_weights, Path(task.model))
    with placement.session():
        trainable = Trainable(denoiser, CONFIG, placement.weights)
        latents = denoiser.prepare_latents(make_latent(task).to(denoiser.device))
        noised = objective.add_noise(
            denoiser, latents, torch.randn_like(latents), torch.tensor([0.7], device=latents.device)
        )

        def predict() -> Tensor:
            text = make_text(task).to(denoiser.device)
            return denoiser.forward(noised.noisy, noised.timestep, {"c_crossattn": text})

        # Finds out whether the network writes in place, and saves tensors its own way meanwhile
        objective.loss_per_item(predict(), noised.target).mean().backward()
        trainable.zero_grad()
        own = addresses_of_weights(placement, denoiser.module)
        kept: dict[int, int] = {}  # for the whole pass
        once: dict[int, int] = {}  # by one block that is computed again
        last = placement.recomputed[-1] if placement.recomputed else None
        if last is not None:
            inner = last._forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                if not once:
                    with keeping(once, own):
                        inner(*args, **kwargs)
                return inner(*args, **kwargs)

            last._forward = forward
        with keeping(kept, own):
            answer = predict()
        objective.loss_per_item(answer, noised.target).mean().backward()
        gradients = sum(size_of(p.grad) for p in trainable.buffers if p.grad is not None)
        trainable.set_learning_rate(0)
        trainable.optimizer_step()
        states = [t for s in trainable._optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        whole = sum(size_of(p) for p in model.model.diffusion_model.parameters())
        return {
            "weights": placement.ledger.peak or whole,
            "adapter": sum(size_of(p) for p in trainable.buffers),
            "gradients": gradients,
            "optimizer": sum(map(size_of, states)),
            "activations": sum(kept.values()) + sum(v for k, v in once.items() if k not in kept),
        }


def main() -> None:
    model = load_model(task)
    denoiser = HostDenoiser(model, tuple(make_latent(task).shape))
    plan = plan_memory(model, denoiser, CONFIG, tuple(make_latent(task).shape[1:]), Path(task.model))
    del denoiser
    with tempfile.TemporaryDirectory() as folder:
        peak, seconds = train_as_node(model, Path(folder))
    measured = count(model)
    say(
        {
            "planned": {name: getattr(plan, name) for name in measured},
            "measured": measured,
            "peak_bytes": peak,
            "seconds": statistics.median(seconds[1:] or seconds),
        }
    )


if __name__ == "__main__":
    main()
