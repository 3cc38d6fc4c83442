"""Cases of small_card.py: `python small_card_worker.py CASES.json`, in the host's folder.

Prints a line of JSON for each."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from host_process import enter_host, say

CASES: list[dict[str, Any]] = json.loads(sys.argv[1])
CASE: dict[str, Any] = {}  # the present one
sys.stdout = sys.stderr  # the host prints; our parent reads the true stdout
enter_host("cpu")
logging.disable(logging.INFO)

import comfy.model_management
import comfy.rmsnorm
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from lora_kiln.nodes.host.memory import loading
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.memory.plan import plan_memory  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer import memory
from lora_kiln.trainer.conditioning import map_tensors  # type: ignore[import-not-found]
from lora_kiln.trainer.config import (  # type: ignore[import-not-found]
    AdapterConfig,
    MemoryConfig,
    OptimizerConfig,
    TrainConfig,
)
from lora_kiln.trainer.loop import objective
from lora_kiln.trainer.loop.prefetch import to_device  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.trainable import Trainable  # type: ignore[import-not-found]
from lora_kiln.trainer.memory import placement as placing
from pretend_device import NAME, PINNED, Allocations, pretend_device, pretending, rms_norm, with_values
from torch import Tensor

CPU, DEVICE = torch.device("cpu"), pretend_device()
RAM = 1 << 40  # bytes, as many as are asked for
FP8 = torch.float8_e4m3fn

# Arguments of the networks' constructors, as the host reads them from the files
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "freq_dim": 256,
    "text_dim": 4096,
    "in_dim": 16,
    "out_dim": 16,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan-1.3b": ("WAN21_T2V", {**WAN, "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}),
    "wan-14b": ("WAN21_T2V", {**WAN, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}),
    "sdxl": (
        "SDXL",
        {
            **{
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 320,
                "context_dim": 2048,
            },
            **{"use_spatial_transformer": True, "legacy": False, "num_res_blocks": [2, 2, 2]},
            **{"channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10]},
            **{"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10},
            **{"num_head_channels": 64, "use_linear_in_transformer": True, "num_classes": "sequential"},
            **{"adm_in_channels": 2816},
        },
    ),
    "flux": (
        "Flux",
        {
            **{"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768},
            **{"context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19},
            **{"depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2},
            **{"qkv_bias": True, "guidance_embed": True},
        },
    ),
    "qwen-image": (
        "QwenImage",
        {
            **{"image_model": "qwen_image", "in_channels": 64, "num_layers": 60, "attention_head_dim": 128},
            **{"num_attention_heads": 24, "joint_attention_dim": 3584, "axes_dims_rope": (16, 56, 56)},
        },
    ),
}
NEWER = {"flux": {"txt_ids_dims": []}}  # that host 0.33 asks for


def shapes_of_file() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the model's file."""
    name, arguments = NETWORKS[CASE["model"]]
    newer = NEWER.get(CASE["model"], {}) if hasattr(comfy.supported_models, "LTXAV") else {}
    config = getattr(comfy.supported_models, name)({**arguments, **newer})
    config.set_inference_dtype(torch.bfloat16, None)
    network = config.get_model({}, "model.diffusion_model.", device=torch.device("meta")).diffusion_model
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def load_model(shapes: dict[str, tuple[int, ...]]) -> Any:
    """The MODEL, by the host's own loader from a state dict of that type."""
    options: dict[str, Any] = {}
    state = {key: torch.empty(shape, dtype=torch.bfloat16) for key, shape in shapes.items()}
    matrices = [k for k in shapes if k.endswith(".weight") and len(shapes[k]) == 2 and "blocks" in k]
    if CASE["dtype"] != "bf16":
        state |= {key: torch.empty(shapes[key], dtype=FP8) for key in matrices}
    if CASE["dtype"] == "fp8":
        options["dtype"] = FP8
    if CASE["dtype"] == "fp8-scaled":
        # Two values: matrices in full precision
        state |= {
            k.removesuffix("weight") + "scale_weight": torch.empty((), dtype=torch.float32) for k in matrices
        }
        state["scaled_fp8"] = torch.empty(2, dtype=FP8)
    found = comfy.sd.load_diffusion_model_state_dict(state, model_options=options)
    assert found is not None, "the host does not know this network"
    return found


def latent_shape() -> tuple[int, ...]:
    height, width = CASE["height"] // 8, CASE["width"] // 8
    match CASE["model"]:
        case "sdxl":
            return 4, height, width
        case "flux":
            return 16, height, width
    return 16, 1 + (CASE["frames"] - 1) // 4, height, width


def conditioning_of_item() -> dict[str, Any]:
    """As the host's text encoders make it."""
    match CASE["model"]:
        case "sdxl":
            return {"cross_attn": torch.empty(1, 77, 2048), "pooled_output": torch.empty(1, 1280)}
        case "flux":
            pooled = torch.empty(1, 768)
            return {"cross_attn": torch.empty(1, 256, 4096), "pooled_output": pooled, "guidance": 1.0}
        case "qwen-image":
            return {"cross_attn": torch.empty(1, 128, 3584)}
    return {"cross_attn": torch.empty(1, 512, 4096)}


@contextmanager
def host_on(counted: Allocations) -> Iterator[None]:
    """The host takes the pretend device for its GPU, of the card's size, and pins what it keeps in CPU memory."""
    management = comfy.model_management

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        card = int(CASE["card_gb"] * 1e9) or RAM
        size = RAM if device is not None and device.type == "cpu" else card - counted.live[NAME]
        return (size, 0) if torch_free_too else size

    def pin(tensor: Tensor) -> bool:
        counted.register(tensor)
        return True

    changed: dict[str, Any] = {
        "get_torch_device": lambda: DEVICE,
        "unet_offload_device": lambda: CPU,
        "unet_inital_load_device": lambda parameters, dtype: CPU,
        "get_free_memory": free,
        "should_use_bf16": lambda *args, **kwargs: True,
        "should_use_fp16": lambda *args, **kwargs: True,
        "lowvram_available": True,
        "MIN_WEIGHT_MEMORY_RATIO": 0.0 if CASE["nvidia"] else 0.4,
        "vram_state": management.VRAMState.NORMAL_VRAM,
        "pin_memory": pin,
        "unpin_memory": lambda tensor: counted.unregister(tensor),
        "soft_empty_cache": lambda force=False: None,
    }
    with ExitStack() as entered:
        for name, value in changed.items():
            entered.enter_context(mock.patch.object(management, name, value))
        if hasattr(comfy.rmsnorm, "rms_norm_torch"):  # host 0.3.75's own name for torch's
            entered.enter_context(mock.patch.object(comfy.rmsnorm, "rms_norm_torch", rms_norm))
        if hasattr(
            comfy.utils, "convert_old_quants"
        ):  # host 0.33 reads the kinds of quantised layers from values
            kinds = with_values(comfy.utils.convert_old_quants)
            entered.enter_context(mock.patch.object(comfy.utils, "convert_old_quants", kinds))
        # A file that is mapped is CPU memory that is not pinned
        entered.enter_context(mock.patch.object(placing, "map_weights", lambda file, plain: plain))
        entered.enter_context(
            mock.patch.object(loading.ModelLoader, "_release_copies", lambda self, file: "")
        )
        yield


def run(counted: Allocations, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    with counted.part("weights"):
        model = load_model(shapes)
    latents = torch.empty(CASE["batch"], *latent_shape())
    denoiser = HostDenoiser(model, tuple(latents.shape))
    config = TrainConfig(
        steps=2,
        batch_size=CASE["batch"],
        adapter=AdapterConfig(rank=CASE["rank"], alpha=float(CASE["rank"]), dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
        memory=MemoryConfig(
            level=CASE["level"],
            base_precision=CASE["base_precision"],
            offload_block_inputs=CASE["offload"],
            recompute_parts=CASE["parts"],
        ),
    )
    plan = plan_memory(model, denoiser, config, latent_shape(), None)
    file = Path("model.safetensors") if plan.memory.level == "stream from file" else None
    placement = placing.Placement(denoiser, plan.memory, config.adapter, host_weights, file)
    counted.reset_peak()
    with ExitStack() as session:
        with counted.part("weights"):
            session.enter_context(placement.session())
        with counted.part("adapter"):
            trainable = Trainable(denoiser, config, placement.weights)
        for step in range(2):  # the first finds out whether the network writes in place
            take_step(counted, denoiser, trainable, latents, step)
        after = dict(counted.parts[NAME])
    return {
        **CASE,
        "asked": CASE["level"],
        "level": plan.memory.level,
        "offload": plan.memory.offload_block_inputs,
        "parts": plan.memory.recompute_parts,
        "peak_device_bytes": counted.peak[NAME],
        "peak_pinned_bytes": counted.peak[PINNED],
        "registered_bytes": counted.registered_peak,
        "planned_device_bytes": plan.total,
        "planned_pinned_bytes": getattr(plan, "pinned", 0),
        "peak_parts": {k: v for k, v in counted.parts_at_peak[NAME].items() if v},
        "planned_parts": {
            name: getattr(plan, name)
            for name in ("weights", "adapter", "gradients", "optimizer", "activations")
        },
        "kept_after_a_step": {k: v for k, v in after.items() if v},
        "simulated": True,
    }


def take_step(counted: Allocations, denoiser: Any, trainable: Any, latents: Tensor, step: int) -> None:
    """Forward, backward and an optimizer step, as trainer/loop/train.py takes them."""
    with counted.part("inputs"):
        on_device = denoiser.prepare_latents(to_device(latents, DEVICE))
        level = to_device(torch.empty(len(latents)), DEVICE)
        noised = objective.add_noise(denoiser, on_device, torch.empty_like(on_device), level)
        items = [conditioning_of_item() for _ in latents]
        (batch,) = denoiser.batch_conditioning(items, on_device)
        conditioning = map_tensors(batch.conditioning, lambda t: to_device(t, DEVICE))
    trainable.adapter.set_step(0, step)
    with counted.part("activations"):
        prediction = denoiser.forward(noised.noisy, noised.timestep, conditioning)
        loss = objective.loss_per_item(prediction, noised.target).mean()
        trainable.backward(loss, 1e9)
        del prediction, loss
    with counted.part("optimizer"):
        trainable.clip_gradients()
        trainable.set_learning_rate(step)
        trainable.optimizer_step()


def main() -> None:
    for case in CASES:
        CASE.clear()
        CASE.update(case)
        shapes = shapes_of_file()
        with pretending(memory) as counted, host_on(counted):
            found = run(counted, shapes)
            comfy.model_management.unload_all_models()
        say(found)


if __name__ == "__main__":
    main()
