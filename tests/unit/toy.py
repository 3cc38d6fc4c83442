"""A model small enough to train in milliseconds, and encoded items for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.conditioning import ItemConditioning
from trainer.config import AdapterConfig, ObjectiveConfig, OptimizerConfig, Prediction, TrainConfig
from trainer.dataset.encoded import EncodedDataset, EncodedItem, Encoder, write_conditioning
from trainer.denoiser import Conditioning, ConditioningBatch, batch_equal_shapes
from trainer.memory.mapped import release_copies
from trainer.memory.shared_clone import SharedClone
from trainer.safefile import write_safetensors

CHANNELS, TEXT = 4, 6


class ToyBlock(nn.Module):
    """Two layers around a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.norm_q, self.o = nn.Linear(CHANNELS, 16), nn.LayerNorm(16), nn.Linear(16, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.o(torch.tanh(self.norm_q(self.q(x))))
        return answer


class ToyNetwork(nn.Module):
    """Two blocks over pixels, with the caption's mean and the timestep added. Layer names look like a transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(TEXT, CHANNELS)
        self.blocks = nn.ModuleList(ToyBlock() for _ in range(2))

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        hidden = x.movedim(1, -1)  # (B, F, H, W, C)
        extra = self.text(text.mean(1)) + torch.sin(timestep / 200)[:, None]
        hidden = hidden + extra[:, None, None, None]
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.movedim(-1, 1)


class ToyDenoiser:
    """ToyNetwork as a Denoiser; the weights are inference tensors, as a ComfyUI loader leaves them."""

    family: tuple[str, ...] = ("Toy",)
    timestep_scale = 1000.0
    noise_scale = 1.0
    guidance_distilled = False
    needs_start_image = False
    takes_given_parts = False
    latent_channels = CHANNELS
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, prediction: Prediction = "flow") -> None:
        torch.manual_seed(7)
        with torch.inference_mode():
            self.network = ToyNetwork()
        self.prediction = prediction
        self.alphas_cumprod = None if prediction == "flow" else torch.linspace(0.999, 0.01, 1000)
        self.clone = SharedClone(self.network)
        self.sessions = 0

    @property
    def module(self) -> nn.Module:
        return self.clone.module

    @contextmanager
    def session(self, whole: bool = True, file: Path | None = None) -> Iterator[str]:
        self.sessions += 1
        note = "" if file is None else release_copies(self.network, file).sentence()
        with self.clone.weights():
            yield note

    def keeps_to_itself(self, owner: nn.Module, name: str) -> bool:
        return False

    def prepare_latents(self, latents: Tensor) -> Tensor:
        return latents

    def batch_conditioning(
        self, items: Sequence[ItemConditioning], latents: Tensor
    ) -> list[ConditioningBatch]:
        return batch_equal_shapes(items)

    def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.module(noisy, timestep, conditioning["cross_attn"])


class ToyEncoder(Encoder):
    """Means of 8x8 patches as latents, letter counts as text; counts how often it is asked."""

    image_fingerprint = "toy-vae"
    text_fingerprint = "toy-clip"

    def __init__(self) -> None:
        self.images = self.texts = self.rooms = 0
        self.calls: list[tuple[int, ...] | str] = []  # shapes of pixel batches and captions, in order

    def make_room(self) -> None:
        self.rooms += 1

    def encode_pixels(self, pixels: np.ndarray) -> Tensor:
        self.images += len(pixels)
        self.calls.append(pixels.shape)
        _, frames, height, width, _ = pixels.shape
        cells = torch.from_numpy(pixels).reshape(len(pixels), frames, height // 8, 8, width // 8, 8, 3)
        rgb = cells.mean((3, 5)).movedim(-1, 1)[
            :, :, ::4
        ]  # (B, 3, F', h, w): every 4th frame, as a video VAE has
        return torch.cat([rgb, rgb.mean(1, keepdim=True)], 1)

    def encode_text(self, caption: str, controls: Sequence[np.ndarray] = ()) -> ItemConditioning:
        self.texts += 1
        self.calls.append(caption)
        rows = torch.zeros(1, 5, TEXT)
        for place, word in enumerate(caption.split()[:5]):
            rows[0, place, len(word) % TEXT] = 1.0
        return {"cross_attn": rows}


def make_encoded(
    folder: Path, count: int = 4, shapes: tuple[tuple[int, ...], ...] = ((CHANNELS, 1, 2, 2),)
) -> EncodedDataset:
    """`count` random items whose shapes go round."""
    draws = torch.Generator().manual_seed(3)
    items = []
    for i in range(count):
        latent, text = folder / f"latent{i}.safetensors", folder / f"text{i}.safetensors"
        shape = shapes[i % len(shapes)]
        write_safetensors(latent, {"latent": torch.randn(shape, generator=draws)})
        write_conditioning(text, {"cross_attn": torch.randn(1, 3, TEXT, generator=draws)})
        items.append(EncodedItem(latent, text, f"item {i}", shape))
    return EncodedDataset(tuple(items))


def hold_out(encoded: EncodedDataset, count: int) -> EncodedDataset:
    """The same dataset with its last `count` items for validation."""
    items = list(encoded.items)
    items[-count:] = [dataclasses.replace(i, role="validation") for i in items[-count:]]
    return EncodedDataset(tuple(items))


def make_config(
    steps: int = 6,
    batch_size: int = 2,
    seed: int = 1,
    rank: int = 4,
    dropout: float = 0.0,
    **optimizer: Any,
) -> TrainConfig:
    """A short run."""
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        checkpoint_every=0,
        adapter=AdapterConfig(rank=rank, alpha=float(rank), dropout=dropout),
        optimizer=OptimizerConfig(**{"learning_rate": 1e-2, **optimizer}),
        objective=ObjectiveConfig(timestep_sampling="logit_normal", shift=3.0),
    )
