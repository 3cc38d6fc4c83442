"""One training step and one LoRA file, by us on the host's Wan and by diffusers with plain peft; prints JSON.

Run by test_parity.py: `python parity.py MODEL.safetensors` in the host's folder. Both sides get the same weights,
latents, noise, noise levels, text and LoRA; every figure is a relative error (norm of the difference over the norm).
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

MODEL = Path(sys.argv[1]).resolve()
inprocess.start()

import comfy.model_management
import comfy.sd
import comfy.utils
import diffusers
import folder_paths
import peft
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.lora import LoraAdapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.loop import objective  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import export_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.save import save_lora  # type: ignore[import-not-found]
from torch import Tensor

import nodes

RANK, ALPHA = 8, 4.0
TARGETS = r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])"


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def diffusers_name(name: str) -> str:
    """blocks.0.self_attn.q -> blocks.0.attn1.to_q"""
    name = name.replace("self_attn", "attn1").replace("cross_attn", "attn2")
    name = re.sub(r"\.([qkv])$", r".to_\1", name)
    name = re.sub(r"\.o$", ".to_out.0", name)
    return name.replace("ffn.0", "ffn.net.0.proj").replace("ffn.2", "ffn.net.2")


def make_diffusers_model(state: dict[str, Tensor]) -> Any:
    dim = state["head.modulation"].shape[-1]
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=dim // 128,
        attention_head_dim=128,
        text_dim=state["text_embedding.0.weight"].shape[1],
        ffn_dim=state["blocks.0.ffn.0.weight"].shape[0],
        num_layers=1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        rope_max_seq_len=64,
    )
    model.load_state_dict(convert_wan_transformer_to_diffusers({k: v.float() for k, v in state.items()}))
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 16, 3, 8, 6), torch.randn(2, 16, 3, 8, 6)
    text, level = torch.randn(2, 16, 4096), torch.tensor([0.3, 0.8])

    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(str(MODEL))
    denoiser = HostDenoiser(patcher, tuple(latents.shape))
    x0 = denoiser.prepare_latents(latents)
    noised = objective.add_noise(denoiser, x0, noise, level)

    # Ours
    config = AdapterConfig(rank=RANK, alpha=ALPHA, dropout=0.0)
    with denoiser.session():
        adapter = LoraAdapter(denoiser.module, config, 0, host_weights)
        state = adapter.state_dict()
        for name in state:
            if name.endswith("lora_B.weight"):
                state[name].normal_(std=0.02)
        adapter.load_state_dict(state)
        answer = denoiser.forward(noised.noisy, noised.timestep, {"c_crossattn": text})
        loss = objective.loss_per_item(answer, noised.target).mean()
        loss.backward()
        grads = {
            key: layer_parameter.grad
            for name, layer in adapter.layers.items()
            for key, layer_parameter in (
                (f"{name}.lora_A", layer.lora_A["default"].weight),
                (f"{name}.lora_B", layer.lora_B["default"].weight),
            )
        }

    # diffusers and plain peft
    reference = make_diffusers_model(comfy.utils.load_torch_file(str(MODEL)))
    names = {name: diffusers_name(name) for name in adapter.layers}
    reference.add_adapter(
        peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=list(names.values()), init_lora_weights=False
        )
    )
    modules = dict(reference.named_modules())
    for name, other in names.items():
        for part in ("lora_A", "lora_B"):
            getattr(modules[other], part)["default"].weight.data.copy_(state[f"{name}.{part}.weight"])
    noisy = torch.lerp(x0, noise, level.reshape(-1, 1, 1, 1, 1))
    expected = reference(noisy, level * 1000.0, text, return_dict=False)[0]
    expected_loss = torch.nn.functional.mse_loss(expected, noise - x0)
    expected_loss.backward()
    grad_errors = [
        error(grads[f"{name}.{part}"], getattr(modules[other], part)["default"].weight.grad)
        for name, other in names.items()
        for part in ("lora_A", "lora_B")
    ]

    # The saved file through both loaders
    with tempfile.TemporaryDirectory() as folder:
        save_lora(Path(folder) / "parity.safetensors", export_adapter(state, config))
        folder_paths.add_model_folder_path("loras", folder)
        with torch.inference_mode():
            (with_lora,) = nodes.LoraLoaderModelOnly().load_lora_model_only(
                patcher, "parity.safetensors", 1.0
            )
            comfy.model_management.load_models_gpu([with_lora])
            by_host = with_lora.model.diffusion_model(noisy, level * 1000.0, context=text)
        fresh = make_diffusers_model(comfy.utils.load_torch_file(str(MODEL)))
        lora_state = diffusers.WanPipeline.lora_state_dict(folder, weight_name="parity.safetensors")
        diffusers.WanPipeline.load_lora_into_transformer(lora_state, fresh, adapter_name="default")
        with torch.no_grad():
            by_diffusers = fresh(noisy, level * 1000.0, text, return_dict=False)[0]
            without = make_diffusers_model(comfy.utils.load_torch_file(str(MODEL)))(
                noisy, level * 1000.0, text, return_dict=False
            )[0]

    print(
        json.dumps(
            {
                "layers": len(names),
                "output": error(answer.detach(), expected.detach()),
                "loss": error(loss.detach(), expected_loss.detach()),
                "worst_gradient": max(grad_errors),
                "file_host_vs_diffusers": error(by_host, by_diffusers),
                "file_host_vs_training": error(by_host, answer.detach()),
                "effect_of_lora": error(by_diffusers, without),
            }
        )
    )


main()
