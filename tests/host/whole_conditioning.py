"""Conditionings of tiny networks of the host's own classes, from a node's CONDITIONING over the disk to a prediction;
prints JSON.

Run by test_whole_conditioning.py in the host's folder. "prediction" is our relative error against the host's own way
of calling the model (convert_cond, process_conds, calc_cond_batch) with the whole CONDITIONING, "alone" that of an item
in a batch against the item alone, "without" the host's against itself without what is told beside the caption, and
"batches" what became of one batch of three items: two captions of one length and a longer one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.clip_vision
import comfy.ldm.flux.model
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import comfy.supported_models
import torch
from comfy_extras import nodes_model_advanced
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.config import ObjectiveConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.batches import ItemStore, SampleDraw  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.from_graph import encoded_from_latents  # type: ignore[import-not-found]
from lora_kiln.trainer.errors import KilnError  # type: ignore[import-not-found]
from lora_kiln.trainer.loop import objective  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.prefetch import (  # type: ignore[import-not-found]
    conditioning_batches,
    keep_given_parts,
)
from lora_kiln.trainer.noise_defaults import resolve  # type: ignore[import-not-found]
from torch import Tensor

LEVEL = 0.6
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 12,
    "context_in_dim": 24,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": (1, 2, 4),
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_head_channels": 16,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "context_dim": 24,
    "adm_in_channels": 12 + 6 * 256,
}
WAN = {
    "model_type": "i2v",
    "dim": 128,
    "ffn_dim": 128,
    "num_heads": 1,
    "num_layers": 2,
    "in_dim": 36,
    "out_dim": 16,
    "text_dim": 24,
}
QWEN = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "axes_dims_rope": (8, 12, 12),
}
LUMINA = {
    "in_channels": 16,
    "dim": 256,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 8,
    "n_kv_heads": 8,
    "multiple_of": 32,
    "ffn_dim_multiplier": 2.0,
    "qk_norm": True,
    "cap_feat_dim": 24,
    "axes_dims": [8, 12, 12],
    "axes_lens": [64, 64, 64],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}


if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:  # 0.33
    FLUX["txt_ids_dims"] = []


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_draws)


_draws = torch.Generator().manual_seed(1)


def vision() -> Any:
    output = comfy.clip_vision.Output()
    output.last_hidden_state, output.penultimate_hidden_states = draw(1, 9, 1280), draw(1, 9, 1280)
    output.image_embeds = draw(1, 8)
    return output


# What is told beside the caption
EXTRAS: dict[str, Any] = {
    "Wan 2.1 i2v": lambda: {
        "pooled_output": None,
        "clip_vision_output": vision(),
        "concat_latent_image": draw(1, 16, 2, 8, 8),
        "concat_mask": (draw(1, 1, 2, 8, 8) > 0).float(),
    },
    "SDXL": lambda: {
        "pooled_output": draw(1, 12),
        **{"width": 1000, "height": 700, "crop_w": 30, "crop_h": 4, "target_width": 64, "target_height": 64},
    },
    "Flux": lambda: {
        "pooled_output": draw(1, 12),
        "guidance": 2.5,
        "reference_latents": [draw(1, 16, 8, 6), draw(1, 16, 4, 4)],
        "reference_latents_method": "index",
    },
    "Qwen-Image": lambda: {"pooled_output": None, "reference_latents": [draw(1, 16, 1, 6, 8)]},
    "Z-Image": lambda: {"pooled_output": None, "attention_mask": None},
    "Wan 2.2 5B i2v": lambda: {"pooled_output": None},
}
SHAPES = {
    "Wan 2.2 5B i2v": (48, 3, 8, 8),
    "Wan 2.1 i2v": (16, 2, 8, 8),
    "SDXL": (4, 8, 8),
    "Qwen-Image": (16, 1, 8, 8),
}


def make_model(name: str) -> Any:
    """A MODEL with random weights."""
    models, bases = comfy.supported_models, comfy.model_base
    config_class, model_class, options, values = {
        "Wan 2.1 i2v": (models.WAN21_I2V, bases.WAN21, {"image_to_video": True}, WAN),
        "Wan 2.2 5B i2v": (
            models.WAN22_T2V,
            bases.WAN22,
            {},
            {**WAN, "model_type": "t2v", "in_dim": 48, "out_dim": 48},
        ),
        "SDXL": (models.SDXL, bases.SDXL, {}, UNET),
        "Flux": (models.Flux, bases.Flux, {}, FLUX),
        "Qwen-Image": (models.QwenImage, bases.QwenImage, {}, QWEN),
        "Z-Image": (models.ZImage, bases.Lumina2, {}, LUMINA),
    }[name]
    config = config_class(dict(values))
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    with torch.inference_mode():
        model = model_class(config, device=cpu, **options)
        for parameter in model.diffusion_model.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
            values_drawn = draw(*parameter.shape)
            parameter.copy_(values_drawn / fan_in**0.5 if parameter.ndim > 1 else 1 + 0.1 * values_drawn)
    model.diffusion_model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


@torch.no_grad()
def by_host(
    model: Any, entry: Any, x: Tensor, sigma: Tensor, mask: Tensor | None = None, given: Tensor | None = None
) -> Tensor:
    """What the host's sampler gets for its denoised image; where the mask is 0 it is told what is given."""
    comfy.model_management.load_models_gpu([model])
    base = model.model
    base.current_patcher = model
    conds = {"positive": comfy.sampler_helpers.convert_cond([entry])}
    shapes = {"latent_shapes": [tuple(x.shape)]}
    if mask is not None:
        mask = comfy.sampler_helpers.prepare_mask(mask, x.shape, x.device)
        x = x * mask + given * (1 - mask)  # as KSamplerX0Inpaint with this model's scale_latent_inpaint
    latents = torch.zeros_like(x) if given is None else given
    conds = comfy.samplers.process_conds(
        base, torch.zeros_like(x), conds, x.device, latents, mask, 0, **shapes
    )
    (denoised,) = comfy.samplers.calc_cond_batch(base, [conds["positive"]], x, sigma, model.model_options)
    return denoised


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def figures_of(name: str, folder: Path, model: Any = None) -> dict[str, Any]:
    model = make_model(name) if model is None else model
    shape = SHAPES.get(name, (16, 8, 8))
    entries = [[draw(1, length, 24), EXTRAS[name]()] for length in (7, 7, 14)]
    latents = draw(3, *shape)
    mask = None
    if name == "Wan 2.2 5B i2v":
        mask = torch.ones(1, 1, *shape[1:])
        mask[:, :, 0] = 0  # as Wan22ImageToVideoLatent gives the first frame
    samples = {"samples": latents} if mask is None else {"samples": latents, "noise_mask": mask}
    encoded = encoded_from_latents([samples], [entries], folder)
    denoiser = HostDenoiser(model, tuple(latents.shape))
    config = resolve(ObjectiveConfig(), denoiser)
    store = ItemStore(encoded.items)
    with denoiser.session(), torch.no_grad():
        x0 = denoiser.prepare_latents(latents)
        noised = objective.add_noise(denoiser, x0, draw(3, *shape), torch.full((3,), LEVEL))
        whole = store.load([SampleDraw(i, 0, i) for i in range(3)])
        unmasked, noised = noised, keep_given_parts(denoiser, whole, x0, noised)

        def predict(places: list[int]) -> tuple[Tensor, list[list[int]]]:
            batch = store.load([SampleDraw(i, 0, i) for i in places])
            found = torch.zeros(len(places), *shape)
            parts = conditioning_batches(denoiser, batch.items, x0[places], config)
            for part in parts:
                those = [places[i] for i in part.items]
                answer = denoiser.forward(noised.noisy[those], noised.timestep[those], part.conditioning)
                found[list(part.items)] = answer
            return found, [list(part.items) for part in parts]

        together, batches = predict([0, 1, 2])
        alone = [predict([i])[0][0] for i in range(3)]

    sampling = model.get_model_object("model_sampling")
    prediction, alone_error, without = 0.0, 0.0, 1.0
    for i, entry in enumerate(entries):
        noisy, given = unmasked.noisy[i : i + 1], x0[i : i + 1]
        if denoiser.alphas_cumprod is None:
            sigma, x = torch.tensor([LEVEL]), noisy
        else:
            power = denoiser.alphas_cumprod[noised.timestep[i : i + 1].long()]
            sigma = ((1 - power) / power).sqrt()
            x = noisy / power.sqrt()
        told = () if mask is None else (mask, given)
        expected = by_host(model, entry, x, sigma, *told)
        if mask is not None:
            x = noised.noisy[i : i + 1]
        ours = sampling.calculate_denoised(sigma, together[i : i + 1], x)
        prediction = max(prediction, error(ours - x, expected - x))
        alone_error = max(alone_error, error(together[i], alone[i]))
        plain = [entry[0], {"pooled_output": entry[1]["pooled_output"]}]
        without = min(without, error(by_host(model, plain, x, sigma) - x, expected - x))  # no mask either
    return {
        "prediction": prediction,
        "alone": alone_error,
        "without": without,
        "batches": batches,
        "sampling": config.timestep_sampling,
        "shift": config.shift,
        "by_size": config.shift_by_size,
    }


def patched(sampling: str, zsnr: bool = False) -> Any:
    (model,) = nodes_model_advanced.ModelSamplingDiscrete().patch(make_model("SDXL"), sampling, zsnr)
    return model


def refusal(sampling: str) -> str:
    try:
        HostDenoiser(patched(sampling), (1, 4, 8, 8))
    except KilnError as refused:
        return str(refused)
    return ""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: figures_of(name, Path(folder)) for name in EXTRAS}
        for sampling, zsnr in (("v_prediction", True), ("x0", False), ("eps", False)):
            figures[f"SDXL {sampling}"] = figures_of("SDXL", Path(folder), patched(sampling, zsnr))
        figures["refused"] = {name: refusal(name) for name in ("lcm", "img_to_img")}
    print(json.dumps(figures))


main()
