"""One training step on the tiny Wan, for scripts that compare several ways of taking it.

Import it after inprocess.start().
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.loop import objective  # type: ignore[import-not-found]
from torch import Tensor

torch.manual_seed(0)
LATENTS, NOISE = torch.randn(2, 16, 1, 8, 6), torch.randn(2, 16, 1, 8, 6)
TEXT, SIGMA = torch.randn(2, 16, 4096), torch.tensor([0.3, 0.8])


def load(path: Path, **options: Any) -> Any:
    """The host's MODEL."""
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path), model_options=options)


@contextmanager
def kept_off_the_device() -> Iterator[None]:
    """The host loads as it does on a GPU that has no room: weights stay, patches become functions."""

    def load_models(models: list[Any], memory_required: float = 0, **options: Any) -> None:
        for model in models:
            model.patch_model(model.load_device, lowvram_model_memory=1)

    original = comfy.model_management.load_models_gpu
    comfy.model_management.load_models_gpu = load_models
    try:
        yield
    finally:
        comfy.model_management.load_models_gpu = original


def take_step(denoiser: HostDenoiser, adapter: Any) -> list[Tensor]:
    """Fill the adapter with the same values every time, go forward and backward: the loss and all gradients."""
    draws = torch.Generator().manual_seed(1)
    adapter.load_state_dict(
        {k: 0.05 * torch.randn(v.shape, generator=draws) for k, v in adapter.state_dict().items()}
    )
    noised = objective.add_noise(denoiser, denoiser.prepare_latents(LATENTS), NOISE, SIGMA)
    answer = denoiser.forward(noised.noisy, noised.timestep, {"c_crossattn": TEXT})
    loss = objective.loss_per_item(answer, noised.target).mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in adapter.parameters())]


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The worst relative error of all; 0 where all are bit-identical."""
    assert len(ours) == len(theirs) == 81
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
