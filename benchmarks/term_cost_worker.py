"""What term_cost.py runs in the host's folder. Prints seconds of one core for a step of each kind."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_process import REPO, enter_host, say

sys.stdout = sys.stderr  # the host prints; our parent reads the true stdout
enter_host("cpu")
sys.path.append(str(REPO / "tests"))

import torch
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig, TrainConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.from_graph import encoded_from_latents  # type: ignore[import-not-found]
from lora_kiln.trainer.events import StepEvent  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.job import Job  # type: ignore[import-not-found]
from tiny_wan import check

STEPS, TURNS = 12, 3


def datasets(loaded: check.Loaded, folder: Path) -> dict[str, Any]:
    """The same 8 latents of 16 x 16: plain, with a class, as a slider."""
    import nodes

    with torch.inference_mode():
        (text,) = nodes.CLIPTextEncode().encode(loaded.clip, "a red circle on a white background")
    draws = torch.Generator().manual_seed(1)
    plain = encoded_from_latents(
        [{"samples": torch.randn(8, 16, 1, 16, 16, generator=draws)}], [text], folder
    )
    kept = [replace(i, class_texts=(i.text_path,)) for i in plain.items]
    ends = [replace(i, slider_ends=(i.text_path, i.text_path), slider_guidance=1.0) for i in plain.items]
    return {
        "plain": plain,
        "preserving": replace(plain, items=tuple(kept)),
        "slider": replace(plain, items=tuple(ends), slider="a slider"),
    }


def seconds_of_a_step(loaded: check.Loaded, dataset: Any, folder: Path) -> float:
    """Of one core, which other programs on the machine do not lengthen; the first two steps do not count."""
    ends: list[float] = []

    def on_event(event: Any) -> None:
        if isinstance(event, StepEvent):
            ends.append(time.process_time())

    config = TrainConfig(
        steps=STEPS, batch_size=8, checkpoint_every=0, adapter=AdapterConfig(rank=16, alpha=16.0)
    )
    denoiser = HostDenoiser(loaded.model, (8, *dataset.items[0].shape))
    job = Job(
        lambda controls: train(
            denoiser,
            dataset,
            config,
            run_folder=folder,
            weights=host_weights,
            controls=controls,
            emit=on_event,
        )
    )
    job.start()
    job.wait()
    job.result()
    return (ends[-1] - ends[1]) / (len(ends) - 2)


def main() -> None:
    loaded = check.load()
    with tempfile.TemporaryDirectory() as name:
        sets = datasets(loaded, Path(name) / "items")
        found: dict[str, list[float]] = {kind: [] for kind in sets}
        for turn in range(TURNS):
            for kind, dataset in sets.items():
                found[kind].append(seconds_of_a_step(loaded, dataset, Path(name) / f"{kind}{turn}"))
    say(found)


if __name__ == "__main__":
    main()
