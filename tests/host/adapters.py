"""Every kind of adapter, trained a little in the shared clone, saved, loaded by the host's own loader; prints JSON.

Run by test_adapters.py: `python adapters.py MODEL.safetensors` in the host's folder. For each kind: the relative error
between our prediction and the host's with the file on, and how much the adapter changes the answer at all.
"""

from __future__ import annotations

import json
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
import folder_paths
import torch
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.start_from import start_state  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.loop import objective  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import export_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.save import save_lora  # type: ignore[import-not-found]
from torch import Tensor

import nodes

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rank_stabilised": True},
    "patterns": {"rank_pattern": "ffn=2:3, self_attn=8", "exclude_modules": "cross_attn"},
    "pissa": {"init": "pissa"},
    "orthogonal": {"init": "orthogonal"},
    "dora": {"kind": "dora"},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "oft": {"kind": "oft"},
}


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def main() -> None:
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 16, 1, 8, 6), torch.randn(2, 16, 1, 8, 6)
    text, level = torch.randn(2, 16, 4096), torch.tensor([0.3, 0.8])
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(str(MODEL))
    denoiser = HostDenoiser(patcher, tuple(latents.shape))
    noised = objective.add_noise(denoiser, denoiser.prepare_latents(latents), noise, level)
    with denoiser.session():
        plain = denoiser.forward(noised.noisy, noised.timestep, {"c_crossattn": text})

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.add_model_folder_path("loras", folder)
        for name, options in KINDS.items():
            config = AdapterConfig(rank=4, alpha=2.0, dropout=0.1, **options)
            trained = HostDenoiser(patcher, tuple(latents.shape))
            with trained.session():
                adapter = make_adapter(trained.module, config, 0, host_weights)
                at_start = trained.forward(noised.noisy, noised.timestep, {"c_crossattn": text})
                optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02)
                for step in range(6):
                    adapter.set_step(0, step)
                    answer = trained.forward(noised.noisy, noised.timestep, {"c_crossattn": text})
                    objective.loss_per_item(answer, noised.target).mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                adapter.disable_dropout()
                with torch.no_grad():
                    answer = trained.forward(noised.noisy, noised.timestep, {"c_crossattn": text})
                state = adapter.state_dict()
            file = export_adapter(state, config)
            save_lora(Path(folder) / f"{name}.safetensors", file)
            with torch.inference_mode():
                (with_lora,) = nodes.LoraLoaderModelOnly().load_lora_model_only(
                    patcher, f"{name}.safetensors", 1.0
                )
                comfy.model_management.load_models_gpu([with_lora])
                by_host = with_lora.model.diffusion_model(noised.noisy, noised.timestep, context=text)
                with_lora.detach()
            figures[name] = {
                "keys": sorted(k.split(".self_attn.q.")[1] for k in file if ".0.self_attn.q." in k),
                "tensors": len(file),
                "host_vs_training": error(by_host, answer),
                "effect": error(answer, plain),
                "effect_at_start": error(at_start.detach(), plain),
            }
        # Back into training: what the file says is where the next run begins, also at another rank and scale
        larger = AdapterConfig(rank=8, alpha=8.0, rank_stabilised=True)
        again = HostDenoiser(patcher, tuple(latents.shape))
        start, _ = start_state(patcher, None, "lora.safetensors", larger)
        with again.session():
            adapter = make_adapter(again.module, larger, 0, host_weights)
            adapter.load_state_dict({**adapter.state_dict(), **start})
            begun = again.forward(noised.noisy, noised.timestep, {"c_crossattn": text})
        (with_lora,) = nodes.LoraLoaderModelOnly().load_lora_model_only(patcher, "lora.safetensors", 1.0)
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([with_lora])
            by_host = with_lora.model.diffusion_model(noised.noisy, noised.timestep, context=text)
        figures["start_from"] = {"host_vs_training": error(by_host, begun.detach())}
    print(json.dumps(figures))


main()
