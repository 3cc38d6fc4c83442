"""Train the tiny Wan VAE: the host's own WanVAE at dim 8, from nothing, on drawings of the small world.

Speed comes from one observation: for a single frame a causal 3x3x3 convolution sees the past as zeros, so
only its last time tap counts. Training therefore runs plain 2D convolutions on that tap and leaves every
other tap zero. The price: the VAE codes each frame on its own, so a video whose frames differ keeps one
frame of every four. The upsampling and downsampling time convolutions are set by hand to "repeat the frame"
and "keep the last frame".
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from . import world

DIM = 8
"""Base width. The host reads it from the weights; the real Wan VAE has 96."""

LATENT_NOISE = 0.1
"""Noise on the latents while training, in standard deviations, so that the decoder forgives a sampler's
errors."""


# --- the pictures ------------------------------------------------------------------------------------------


def random_doodle(rng: np.random.Generator) -> np.ndarray:  # (64, 64, 3) uint8
    """A random polygon, blob or turned cross on a plain background, in any colours.

    The VAE must be able to code shapes that the diffusion model never sees, as a real VAE does.
    """
    scale = 4
    back, front = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
    if rng.random() < 0.5:
        back = world.BACKGROUNDS[str(rng.choice(list(world.BACKGROUNDS)))]
    if rng.random() < 0.5:
        front = world.COLOURS[str(rng.choice(list(world.COLOURS)))]
    image = Image.new("RGB", (world.SIZE * scale, world.SIZE * scale), back)
    centre = rng.uniform(18, 46, 2)
    points = cross_points(rng) if rng.random() < 0.6 else polygon_points(rng)
    ImageDraw.Draw(image).polygon([tuple(p) for p in (centre + points) * scale], fill=front)
    return np.asarray(image.resize((world.SIZE, world.SIZE), Image.Resampling.BOX))


def cross_points(rng: np.random.Generator) -> np.ndarray:  # (12, 2) pixels from the centre
    """A cross with arms of random length and width; half of them stand upright."""
    length, arm = rng.uniform(12, 21), rng.uniform(3, 8)
    corner = np.array([(arm, -length), (arm, -arm), (length, -arm)])
    turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), quarter) for quarter in range(4)]
    points = np.concatenate([corner @ turn for turn in turns])
    angle = 0.0 if rng.random() < 0.5 else rng.uniform(0, np.pi / 2)
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def polygon_points(rng: np.random.Generator) -> np.ndarray:  # (corners, 2) pixels from the centre
    """Corners in order of angle at random distances: anything from a spike to a near circle."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
    return np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(7, 22, (len(angles), 1))


def training_pictures(count: int, seed: int) -> Tensor:  # (count, 3, 64, 64), -1 to 1
    """Half scenes with the world's shapes anywhere, half doodles."""
    rng = np.random.default_rng(seed)
    pictures = [scene.image() for scene in world.random_scenes(count // 2, seed, anywhere=True)]
    pictures += [random_doodle(rng) for _ in range(count - len(pictures))]
    return to_tensor(pictures)


def to_tensor(pictures: list[np.ndarray]) -> Tensor:  # (N, 3, H, W), -1 to 1
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


# --- the network -------------------------------------------------------------------------------------------


def new_vae() -> nn.Module:
    """The host's WanVAE at the tiny width, weights filled in (the host's layers leave them unset)."""
    from comfy.ldm.wan.vae import WanVAE

    vae = WanVAE(
        dim=DIM,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    ).float()
    with torch.no_grad():
        for layer in vae.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                fill_conv(layer)
        for name, layer in vae.named_modules():
            if name.endswith("residual.6"):  # a block's last convolution: start near the identity
                layer.weight.mul_(0.1)
            elif name.endswith(".proj"):
                layer.weight.zero_()
            elif name.endswith(".time_conv"):
                fill_time_conv(layer)
        for layer in (vae.conv1, vae.conv2):
            layer.weight.copy_(torch.eye(len(layer.weight))[..., None, None, None])
    return vae


def fill_conv(layer: nn.Conv2d | nn.Conv3d) -> None:
    """Kaiming for a 2D kernel; of a 3D kernel only the last time tap, the others stay zero."""
    layer.weight.zero_()
    tap = layer.weight[:, :, -1] if layer.weight.dim() == 5 else layer.weight
    nn.init.kaiming_normal_(tap, nonlinearity="relu")
    layer.bias.zero_()


def fill_time_conv(layer: nn.Conv3d) -> None:
    """Downsampling (as many channels out as in): keep the last frame. Upsampling (twice as many): repeat
    the frame."""
    channels = layer.weight.shape[1]
    copies = layer.weight.shape[0] // channels
    layer.weight.zero_()
    layer.weight[:, :, -1, 0, 0] = torch.eye(channels).repeat(copies, 1)
    layer.bias.zero_()
    layer.requires_grad_(False)


@contextmanager
def single_frame_layers() -> Iterator[None]:
    """While active, the host's VAE layers take one frame: convolutions use only their last time tap, and
    the norm is written out because the library's channel norm alone takes more than half of a training step
    on a CPU."""
    from comfy.ldm.wan.vae import CausalConv3d, RMS_norm

    def convolve(self: nn.Conv3d, x: Tensor, *_args: object, **_kwargs: object) -> Tensor:  # (B, C, 1, H, W)
        weight = self.weight[:, :, -1]
        return F.conv2d(x[:, :, 0], weight, self.bias, padding=weight.shape[-1] // 2)[:, :, None]

    def normalise(self: nn.Module, x: Tensor) -> Tensor:  # (B, C, ...)
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-12) * self.gamma

    originals = (CausalConv3d.forward, RMS_norm.forward)
    CausalConv3d.forward, RMS_norm.forward = convolve, normalise
    try:
        yield
    finally:
        CausalConv3d.forward, RMS_norm.forward = originals


# --- training ----------------------------------------------------------------------------------------------


def train_vae(*, steps: int, batch: int = 16, learning_rate: float = 3e-3, seed: int = 0) -> nn.Module:
    """Train and return the VAE, its latents scaled as the host expects Wan's to be (`scale_latents`)."""
    torch.manual_seed(seed)
    vae = new_vae()
    pictures = training_pictures(12000, seed)
    weights = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=1e-4, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    with single_frame_layers():
        for step in range(steps):
            clean = pictures[torch.randint(len(pictures), (batch,))][:, :, None]
            latent = vae.encoder(clean)[:, :16]
            spread = latent.detach().std(dim=(0, 2, 3, 4), keepdim=True)
            shown = vae.decoder(latent + LATENT_NOISE * spread * torch.randn_like(latent))
            loss = F.mse_loss(shown, clean) + 0.3 * F.l1_loss(shown, clean)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step == steps - 1:
                passed = time.monotonic() - started
                print(f"vae step {step} loss {loss.item():.4f} after {passed:.0f} s", flush=True)
        scale_latents(vae, to_tensor([scene.image() for scene in world.random_scenes(6000, seed)]))
    return vae


@torch.no_grad()
def encode(vae: nn.Module, pictures: Tensor) -> Tensor:  # (N, 3, 64, 64) -> (N, 16, 1, 8, 8)
    return torch.cat([vae.encode(part[:, :, None]) for part in pictures.split(64)])


@torch.no_grad()
def scale_latents(vae: nn.Module, pictures: Tensor) -> None:
    """Give the latents of `pictures` Wan's mean and standard deviation in every channel.

    z' = (z - mean) * wan_std / std + wan_mean goes into conv1 (1x1x1, after the encoder) and its inverse
    into conv2 (before the decoder), so the pictures do not change at all.
    """
    from comfy.latent_formats import Wan21

    wan = Wan21()
    latents = encode(vae, pictures).double()
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    scale = wan.latents_std.flatten().double() / std
    shift = wan.latents_mean.flatten().double() - mean * scale
    vae.conv1.weight[:16, :16, 0, 0, 0] = torch.diag(scale).float()
    vae.conv1.bias[:16] = shift.float()
    vae.conv2.weight[:, :, 0, 0, 0] = torch.diag(1 / scale).float()
    vae.conv2.bias.copy_((-shift / scale).float())
