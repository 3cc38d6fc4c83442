"""Advice from made curves and from real runs."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import AdapterConfig, TrainConfig, ValidationConfig
from trainer.dataset.encoded import EncodedDataset, EncodedItem, write_conditioning
from trainer.events import AdviceEvent, Event, ValidationPoint, best_of
from trainer.loop.advice import advise, advise_on_size
from trainer.loop.progress import TrainResult
from trainer.loop.train import train
from trainer.safefile import write_safetensors

from ..toy import TEXT, ToyDenoiser, hold_out, make_config


def points(*values: float, every: int = 100) -> list[ValidationPoint]:
    """Measured at 0, every, 2 * every, ..."""
    return [ValidationPoint(i * every, v, [v]) for i, v in enumerate(values)]


def noisy(*ends: float, steps: int = 500, noise: float = 0.02, seed: int = 0) -> list[float]:
    """A straight line from one end to the other, with scatter."""
    draws = random.Random(seed)
    first, last = ends[0], ends[-1]
    return [first + (last - first) * i / (steps - 1) + draws.gauss(0, noise) for i in range(steps)]


CONFIG = TrainConfig()


@pytest.mark.parametrize(
    ("losses", "measured", "beginning"),
    [
        (
            noisy(1.0, 0.3),
            points(1.0, 0.8, 0.7, 0.75, 0.82, 0.9),
            "Overfitting: the validation loss was lowest at step 200 ",
        ),
        (noisy(1.0, 0.99), points(1.0, 0.998, 1.001, 0.999), "Underfitting: the training loss stays flat"),
        (
            noisy(1.0, 0.3),
            points(1.0, 1.1, 1.3, 1.4),
            "Overfitting: the validation loss was lowest before training ",
        ),
        (noisy(1.0, 1.0), [], "Underfitting: the training loss stays flat"),
        (noisy(1.0, 0.5), points(1.0, 1.002, 0.999, 1.003), "Weak transfer: the training loss fell from "),
        (noisy(0.5, 0.4, steps=400) + noisy(0.4, 3.0, steps=100), [], "Diverging: the training loss is "),
    ],
)
def test_made_curves(losses: list[float], measured: list[ValidationPoint], beginning: str) -> None:
    (advice,) = advise(losses, measured, CONFIG)
    assert advice.startswith(beginning), advice


@pytest.mark.parametrize(
    ("losses", "measured"),
    [
        (noisy(1.0, 0.5), points(1.0, 0.8, 0.7, 0.65, 0.62, 0.6)),  # all well
        (noisy(1.0, 0.5), points(1.0, 0.8, 0.7, 0.703, 0.7, 0.702)),  # levelled off
        (noisy(1.0, 0.5), points(1.0, 0.8, 0.74, 0.78, 0.73, 0.77, 0.74, 0.78)),  # scatter is no rise
        (noisy(1.0, 1.0, noise=0.3), points(1.0, 0.9, 0.85, 0.83)),  # noise hides what validation shows
        (noisy(1.0, 1.0, steps=30), []),  # too early
        ([], []),
    ],
)
def test_nothing_is_said_without_reason(losses: list[float], measured: list[ValidationPoint]) -> None:
    assert advise(losses, measured, CONFIG) == []


def test_every_sentence_carries_its_numbers() -> None:
    (over,) = advise(noisy(1.0, 0.3), points(1.0, 0.8, 0.7, 0.75, 0.82, 0.9), CONFIG)
    for number in ("0.7000", "0.8600", "23%", "step 200", "0.05", "0.0001"):
        assert number in over, over
    (bad,) = advise([math.nan] * 3 + [0.5] * 5, [], CONFIG, skipped=3)
    assert bad == "Diverging: 3 of 8 steps had no finite loss or gradient. Lower learning_rate (now 0.0001)."


def related(folder: Path, count: int, noise: float, captions: int) -> EncodedDataset:
    """Items that share one picture, each with noise of its own; the captions go round."""
    draws = torch.Generator().manual_seed(5)
    shared = 4 * torch.randn(4, 1, 1, 1, generator=draws)
    items = []
    for i in range(count):
        path, text = folder / f"{i}.safetensors", folder / f"text{i % captions}.safetensors"
        write_safetensors(path, {"latent": shared + noise * torch.randn(shared.shape, generator=draws)})
        if i < captions:
            write_conditioning(text, {"cross_attn": torch.randn(1, 3, TEXT, generator=draws)})
        items.append(EncodedItem(path, text, "a thing", (4, 1, 1, 1)))
    return EncodedDataset(tuple(items))


def real_run(folder: Path, encoded: EncodedDataset, **options: Any) -> tuple[TrainResult, list[Event]]:
    seen: list[Event] = []
    config = dataclasses.replace(make_config(**options), validation=ValidationConfig(every=20))
    result = train(ToyDenoiser(), encoded, config, run_folder=folder / "run", emit=seen.append)
    return result, seen


def test_a_real_run_that_overfits(tmp_path: Path) -> None:
    """One noisy item learned by heart: what it shares with the others helps at first, its noise hurts later."""
    encoded = hold_out(related(tmp_path, 11, noise=1.5, captions=1), 10)
    options = {"batch_size": 1, "gradient_accumulation": 4, "schedule": "constant", "ema_decay": 0.9}
    result, seen = real_run(tmp_path, encoded, steps=300, rank=16, learning_rate=2e-3, **options)
    best = best_of(result.validation)
    assert best is not None and 0 < best.step < 200
    assert len(result.advice) == 1
    assert result.advice[0].startswith(f"Overfitting: the validation loss was lowest at step {best.step} ")
    while_running = [e for e in seen if isinstance(e, AdviceEvent) and e.step < 300]
    assert any("Overfitting" in text for e in while_running for text in e.advice)


def test_a_real_run_that_underfits(tmp_path: Path) -> None:
    encoded = hold_out(related(tmp_path, 8, noise=0.3, captions=8), 2)
    result, _ = real_run(tmp_path, encoded, steps=200, rank=1, learning_rate=1e-6)
    assert len(result.advice) == 1 and result.advice[0].startswith("Underfitting"), result.advice


def test_a_real_run_that_is_well(tmp_path: Path) -> None:
    encoded = hold_out(related(tmp_path, 8, noise=0.3, captions=8), 2)
    result, _ = real_run(tmp_path, encoded, steps=200, rank=4, learning_rate=5e-3)
    assert result.advice == []


def test_a_rank_with_more_parameters_than_the_model_is_named() -> None:
    config = TrainConfig(adapter=AdapterConfig(rank=1024, alpha=1024.0))
    assert advise_on_size(476, 100, config).startswith("Rank 1024 trains 476% of the model's own parameters")
    assert advise_on_size(100, 100, config) == ""
