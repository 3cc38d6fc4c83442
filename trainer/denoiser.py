"""What a model must offer to be trained.

The engine knows no model family. A `Denoiser` wraps one: it names the module that takes adapters, says what the
model predicts and how noise levels become timesteps, and runs one forward pass. `nodes/host/model.py` makes one
from a ComfyUI MODEL; the tests make one from a diffusers transformer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .config import Prediction

Conditioning = dict[str, Tensor]  # by name, batch first; always "cross_attn" (B, L, D) for text


class Denoiser(Protocol):
    """A frozen model that turns noisy latents into a prediction."""

    prediction: Prediction
    """What forward returns: the flow (noise - x0), the noise (epsilon) or v."""

    timestep_scale: float
    """Flow models: the timestep that belongs to sigma = 1 (Wan: 1000)."""

    alphas_cumprod: Tensor | None
    """Epsilon and v models: cumulative signal power per discrete timestep, (T,), falling. None for flow models."""

    latent_channels: int
    """Channels C that latents must have."""

    device: torch.device
    dtype: torch.dtype
    """Where and in what precision forward wants latents and conditioning."""

    @property
    def module(self) -> nn.Module:
        """The network that takes adapters; layer names in LoRA files are relative to it."""
        ...

    def prepare_latents(self, latents: Tensor) -> Tensor:
        """VAE latents (B, C, [F,] H, W) -> the scale the model was trained on (Wan: per-channel mean and std)."""
        ...

    def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, [F,] H, W), timestep (B,) -> prediction, same shape as noisy, fp32."""
        ...

    def session(self, whole: bool = True, file: Path | None = None) -> AbstractContextManager[Any]:
        """Inside it the model is on its device and its parameters may take part in backward. Leaving it restores
        every parameter object. Entered anew each time the run comes back from giving the device away.

        With whole=False the weights stay where they are kept (CPU memory): the caller brings them in. With the
        safetensors `file` that they come from the model gives up its own copies of them, see memory.mapped; what is
        yielded then is a sentence about it, or nothing."""
        ...

    def keeps_to_itself(self, owner: nn.Module, name: str) -> bool:
        """Whether that parameter of a module inside `module` must stay where it is, since only the module's own way of
        bringing it in gives its true value."""
        ...
