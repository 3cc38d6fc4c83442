"""What a model must offer to be trained.

The engine knows no model family. A `Denoiser` wraps one: it names the module that takes adapters, says what the
model predicts and how noise levels become timesteps, and runs one forward pass. `nodes/host/models/denoiser.py` makes
one from a ComfyUI MODEL; the tests make one from a diffusers transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .conditioning import ItemConditioning, equal
from .config import Prediction

Conditioning = dict[str, Any]
"""What forward takes beside the noisy latents, for a batch: made by `Denoiser.batch_conditioning`, read by forward
alone. Tensors are batch first."""


class ConditioningBatch(NamedTuple):
    """Items that can be one batch."""

    items: tuple[int, ...]  # their places in what was asked for, ascending
    conditioning: Conditioning


class Denoiser(Protocol):
    """A frozen model that turns noisy latents into a prediction."""

    family: tuple[str, ...]
    """Names of the model's kind, the most special first; see trainer/noise_defaults.py."""

    prediction: Prediction
    """What forward returns: the flow (noise - x0), the noise (epsilon), v, or the clean latents (x0)."""

    timestep_scale: float
    """Flow models: the timestep that belongs to sigma = 1 (Wan: 1000)."""

    noise_scale: float
    """Flow models: the standard deviation of the noise at sigma = 1; nearly always 1."""

    alphas_cumprod: Tensor | None
    """Epsilon, v and x0 models: cumulative signal power per discrete timestep, (T,), falling. None for flow models."""

    guidance_distilled: bool
    """Whether the model has learned guided predictions and is told how strong ("guidance" of a conditioning)."""

    takes_given_parts: bool
    """Whether a part of the latents may be given, as a first frame is: then it is not noised and the model is told
    ("denoise_mask" of a conditioning, (1, C, [F,] h, w), 0 where it is given)."""

    needs_start_image: bool = False
    """Whether it is always given an image beside the noise ("concat_latent_image"), as an image-to-video model is."""

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

    def batch_conditioning(
        self, items: Sequence[ItemConditioning], latents: Tensor
    ) -> list[ConditioningBatch]:
        """What forward takes for these items, in as few batches as leave each item's prediction what it is alone.

        Args:
            items: B conditionings, on the CPU: looking into a tensor there does not wait for the device.
            latents: (B, C, [F,] H, W) on the device, for their shape.

        Returns:
            Batches that hold every item once, in the order of their first items; their tensors are where they come
            from.
        """
        ...

    def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy (B, C, [F,] H, W), timestep (B,) -> prediction, same shape as noisy, fp32."""
        ...

    def session(self, whole: bool = True, file: Path | None = None) -> AbstractContextManager[Any]:
        """Inside it the model is on its device and its parameters may take part in backward. Leaving it restores
        every parameter object. Entered anew each time the run gets the device back.

        Args:
            whole: False: the weights stay in CPU memory, and the caller brings them in.
            file: the safetensors file that they come from; the parameters become mappings of it, see memory.mapped.

        Yields:
            a sentence about the model's memory for the user, or an empty one."""
        ...

    def keeps_to_itself(self, owner: nn.Module, name: str) -> bool:
        """Whether that parameter of a module inside `module` must not be moved by the caller: only the module's own
        forward gives its true value (patches that are applied on the fly)."""
        ...


class TextEncoder(Protocol):
    """A frozen text encoder that is trained beside the model."""

    fingerprint: str
    """Changes whenever its output would."""

    @property
    def module(self) -> nn.Module:
        """The network that takes adapters; there is one inside `session` only."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Inside the denoiser's session: its parameters may take part in backward."""
        ...

    def encode(self, caption: str) -> ItemConditioning:
        """Conditioning of one caption, on any device; with gradients where they are recorded.

        Raises:
            Stopped: the run was told to stop meanwhile.
        """
        ...


def batch_equal_shapes(items: Sequence[ItemConditioning]) -> list[ConditioningBatch]:
    """`batch_conditioning` for networks that take conditionings as they are: items go together whose values have the
    same names, whose tensors (1, ...) have the same shape and type, and whose other values are equal."""
    groups: list[list[int]] = []
    for index, item in enumerate(items):
        found = next((g for g in groups if _stackable(items[g[0]], item)), None)
        if found is None:
            groups.append([index])
        else:
            found.append(index)
    batches = []
    for group in groups:
        conditioning = {
            name: torch.cat([items[i][name] for i in group]) if isinstance(value, Tensor) else value
            for name, value in items[group[0]].items()
        }
        batches.append(ConditioningBatch(tuple(group), conditioning))
    return batches


def _stackable(a: ItemConditioning, b: ItemConditioning) -> bool:
    def same(x: Any, y: Any) -> bool:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return x.shape == y.shape and x.dtype == y.dtype and len(x) == 1
        return equal(x, y)

    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
