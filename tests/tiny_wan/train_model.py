"""Train the tiny Wan: the host's own WanModel with 4 layers, from nothing, on latents of the small world.

Flow matching as Wan 2.1 does it (s is the noise level, 0 to 1):

    x_s = (1 - s) * x_0 + s * noise        target = noise - x_0        timestep = 1000 * s

The text embeddings are the vectors of `text.py`. Now and then the shape's word is swapped for a random
vector: so the model draws some known shape for a word it does not know, instead of a smear, until a LoRA
teaches it the word.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import text, train_vae, world

SIZES = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 4}
"""The host reads dim, ffn and layers from the weights and takes one head per 128 of dim."""

CAPTION_DROPOUT = 0.1
"""Share of samples with an empty prompt, which classifier-free guidance needs."""

UNKNOWN_WORD = 0.1
"""Share of samples whose shape word is a random vector."""

SHAPE_WORD_AT = 2
"""Place of the shape's word in "a red circle on a white background"."""

SHIFT = 3.0
"""Training leans to high noise by s -> SHIFT * s / (1 + (SHIFT - 1) * s)."""

EMA_DECAY = 0.998


def new_model() -> nn.Module:
    """The host's WanModel at the tiny size, weights filled in (the host's layers leave them unset)."""
    import comfy.model_management
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    # Newer hosts (0.33) otherwise use RoPE kernels that have no backward pass.
    comfy.model_management.in_training = True
    model = WanModel(
        model_type="t2v", **SIZES, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    ).float()
    fill_weights(model)
    return model


@torch.no_grad()
def fill_weights(model: nn.Module) -> None:
    """The usual start of a diffusion transformer: Xavier, small embeddings, a head that says zero."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv3d):
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
            layer.bias.zero_()
        elif isinstance(layer, nn.LayerNorm | nn.RMSNorm) and layer.weight is not None:
            layer.weight.fill_(1)
            if getattr(layer, "bias", None) is not None:
                layer.bias.zero_()
    for embedding in (model.text_embedding, model.time_embedding):
        for layer in (embedding[0], embedding[2]):
            layer.weight.normal_(std=0.02)
    model.head.head.weight.zero_()
    for part in (*model.blocks, model.head):
        part.modulation.normal_(std=SIZES["dim"] ** -0.5)


def training_latents(vae: nn.Module, scenes: list[world.Scene]) -> Tensor:  # (N, 16, 1, 8, 8), mean 0, std 1
    """The scenes as the model sees them: coded by the VAE, then normalised as the host normalises Wan's
    latents."""
    from comfy.latent_formats import Wan21

    pictures = train_vae.to_tensor([scene.image() for scene in scenes])
    with train_vae.single_frame_layers():
        return Wan21().process_in(train_vae.encode(vae, pictures))


def random_contexts(table: Tensor, rows: Tensor) -> Tensor:  # (B, 16, 4096)
    """Caption embeddings, some of them emptied, some with an unknown word for the shape.

    Args:
        table: embeddings of all captions, (captions, 16, 4096).
        rows: which caption each sample has, (B,).
    """
    contexts = table[rows]
    unknown = torch.rand(len(rows)) < UNKNOWN_WORD
    contexts[unknown, SHAPE_WORD_AT] = torch.randn(int(unknown.sum()), text.WIDTH)
    contexts[torch.rand(len(rows)) < CAPTION_DROPOUT] = 0
    return contexts


def random_noise_levels(count: int) -> Tensor:  # (count,), 0 to 1
    """Logit-normal, then shifted."""
    level = torch.sigmoid(torch.randn(count))
    return SHIFT * level / (1 + (SHIFT - 1) * level)


def flow_loss(model: nn.Module, clean: Tensor, contexts: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity, noise - x_0."""
    level = random_noise_levels(len(clean))
    noise = torch.randn_like(clean)
    mix = level.view(-1, 1, 1, 1, 1)
    predicted = model((1 - mix) * clean + mix * noise, 1000 * level, contexts)
    return F.mse_loss(predicted, noise - clean)


def train_model(
    vae: nn.Module, *, steps: int, batch: int = 64, learning_rate: float = 1e-3, seed: int = 0
) -> nn.Module:
    """Train and return the model; its weights are a running average over the last part of training."""
    torch.manual_seed(seed)
    scenes = world.random_scenes(20000, seed + 100)
    latents = training_latents(vae, scenes)
    captions = sorted({scene.caption() for scene in scenes})
    table = torch.stack([text.encode_prompt(caption) for caption in captions])
    rows = torch.tensor([captions.index(scene.caption()) for scene in scenes])
    model = new_model()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    started, losses = time.monotonic(), []
    for step in range(steps):
        picked = torch.randint(len(scenes), (batch,))
        # bfloat16 halves the time on CPUs that know it, and this model draws as well
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow_loss(model, latents[picked], random_contexts(table, rows[picked]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        losses.append(loss.item())
        if step % 100 == 0 or step == steps - 1:
            passed, recent = time.monotonic() - started, math.fsum(losses[-100:]) / len(losses[-100:])
            print(f"model step {step} loss {recent:.4f} after {passed:.0f} s", flush=True)
    return average.module
