"""One step on tiny UNets of the host's own class, shaped as SD 1.5 and SDXL, at every memory level; prints JSON.

Run by test_unet_levels.py in the host's folder. Errors are relative, of loss and gradients, against the whole model;
"kept" is what autograd keeps of the forward, "peak" what the placement holds of weights, both in bytes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch
from kept import addresses_of_weights, keeping
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.memory.plan import plan_memory  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import (  # type: ignore[import-not-found]
    AdapterConfig,
    MemoryConfig,
    TrainConfig,
)
from lora_kiln.trainer.loop import objective  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.blocks import find_blocks  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.ledger import size_of  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.placement import Placement  # type: ignore[import-not-found]
from lora_kiln.trainer.model_files.meta_model import meta_model, read_shapes  # type: ignore[import-not-found]
from safetensors.torch import save_file
from torch import Tensor

LEVELS = ("resident", "checkpoint activations", "stream blocks", "stream from file")
ADAPTER = AdapterConfig(rank=4, alpha=4.0, dropout=0.0)
TEXT, POOLED = 24, 16
COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "context_dim": TEXT,
    "use_spatial_transformer": True,
    "legacy": False,
}
# As the host reads them from the files of these models; fewer channels, and 3 for SDXL's depth of 10
SHAPES: dict[str, dict[str, Any]] = {
    "SD 1.5": {
        **COMMON,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": (1, 2, 4, 4),
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "num_heads": 8,
    },
    "SDXL": {
        **COMMON,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": (1, 2, 4),
        "transformer_depth": [0, 0, 2, 2, 3, 3],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3],
        "transformer_depth_middle": 3,
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": POOLED + 6 * 256,
    },
}

torch.manual_seed(0)
LATENTS, NOISE = torch.randn(2, 4, 22, 18), torch.randn(2, 4, 22, 18)  # no level halves evenly
CAPTIONS = [
    {"cross_attn": torch.randn(1, 7, TEXT), "pooled_output": torch.randn(1, POOLED)} for _ in range(2)
]


def make_model(name: str, cast: bool = False) -> Any:
    """A MODEL with random weights. cast: held in half precision and computed in full, as the host does on old cards."""
    kinds = {
        "SD 1.5": (comfy.supported_models.SD15, comfy.model_base.BaseModel),
        "SDXL": (comfy.supported_models.SDXL, comfy.model_base.SDXL),
    }
    config_class, model_class = kinds[name]
    config = config_class(dict(SHAPES[name]))
    config.set_inference_dtype(*((torch.float16, torch.float32) if cast else (torch.float32, None)))
    cpu = torch.device("cpu")
    with torch.inference_mode():
        model = model_class(config, device=cpu)
        draws = torch.Generator().manual_seed(3)
        for parameter in model.diffusion_model.parameters():
            values = torch.randn(parameter.shape, generator=draws)
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(values / fan_in**0.5 if parameter.ndim > 1 else 1 + 0.1 * values)
    model.diffusion_model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def by_place(model: Any) -> Any:
    """Patched by another node so that each block answers by its place, which it reads from the options."""

    def patch(attended: Tensor, options: dict[str, Any]) -> Tensor:
        stage, number = options["block"]
        factor = {"input": 0.2, "middle": 0.5, "output": 0.8}[stage] + 0.1 * number
        answer: Tensor = attended * (factor + 0.05 * options["block_index"])
        return answer

    patched = model.clone()
    patched.set_model_attn1_output_patch(patch)
    return patched


def measured(forward: Callable[..., Any], own: set[int], largest: list[int]) -> Callable[..., Any]:
    """`forward`, which once more is called by itself to see what it keeps."""

    def again(*args: Any, **kwargs: Any) -> Any:
        kept: dict[int, int] = {}
        with keeping(kept, own):
            answer = forward(*args, **kwargs)
        largest[0] = max(largest[0], sum(kept.values()))
        del answer
        return forward(*args, **kwargs)

    return again


def step(model: Any, file: Path | None = None, **memory: Any) -> tuple[list[Tensor], dict[str, int]]:
    """Loss and gradients; "kept", the most that one recomputed block keeps as "block", and "peak"."""
    denoiser = HostDenoiser(model, tuple(LATENTS.shape))
    placement = Placement(denoiser, MemoryConfig(**memory), ADAPTER, host_weights, file)
    with placement.session():
        adapter = make_adapter(denoiser.module, ADAPTER, 0, placement.weights)
        draws = torch.Generator().manual_seed(1)
        adapter.load_state_dict(
            {k: 0.05 * torch.randn(v.shape, generator=draws) for k, v in adapter.state_dict().items()}
        )
        noised = objective.add_noise(
            denoiser, denoiser.prepare_latents(LATENTS), NOISE, torch.tensor([100.0, 700.0]) / 1000
        )
        ((_, conditioning),) = denoiser.batch_conditioning(CAPTIONS, noised.noisy)
        # Finds out that the network does not write in place, and saves tensors its own way meanwhile
        denoiser.forward(noised.noisy, noised.timestep, conditioning).sum().backward()
        for p in adapter.parameters():
            p.grad = None
        own = addresses_of_weights(placement, denoiser.module)
        kept: dict[int, int] = {}
        largest = [0]
        for wrapper in placement.recomputed:
            wrapper._forward = measured(wrapper._forward, own, largest)
        with keeping(kept, own):
            answer = denoiser.forward(noised.noisy, noised.timestep, conditioning)
        loss = objective.loss_per_item(answer, noised.target).mean()
        loss.backward()
        assert placement.uncalled_blocks_warning() == ""
        found = [loss.detach(), *(p.grad for p in adapter.parameters())]
    assert all(float(t.abs().sum()) > 0 for t in found)
    return found, {"kept": sum(kept.values()), "block": largest[0], "peak": placement.ledger.peak}


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The worst of all; 0 where all are bit-identical."""
    assert len(ours) == len(theirs)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def figures_of(name: str, folder: Path) -> dict[str, Any]:
    model = make_model(name)
    network = model.model.diffusion_model
    file = folder / "model.safetensors"
    # In the order of the alphabet, as many files are
    state = {f"model.diffusion_model.{k}": v.clone() for k, v in sorted(network.state_dict().items())}
    save_file(state, file)
    blocks = find_blocks(network)
    sizes = sorted(sum(-(-size_of(p) // 256) * 256 for p in b.parameters()) for b in blocks)
    inside = sum(size_of(p) for b in blocks for p in b.parameters())
    whole = sum(size_of(p) for p in network.parameters())
    figures: dict[str, Any] = {
        "blocks": len(blocks),
        "share": inside / whole,
        "largest": sizes[-1],
        "outside": whole - inside,
        "whole": whole,
        "levels": {},
    }
    expected, resident = step(model, level="resident")
    figures["kept"] = resident["kept"]
    for level in LEVELS[1:]:
        for offload in (False, True):
            found, sizes_of_level = step(model, file, level=level, offload_block_inputs=offload)
            sizes_of_level["error"] = error(found, expected)  # type: ignore[assignment]
            figures["levels"][f"{level}{' offload' if offload else ''}"] = sizes_of_level

    placed, _ = step(by_place(model), level="resident")
    figures["effect of patches"] = error(placed, expected)
    figures["patched"] = {
        level: error(step(by_place(model), level=level)[0], placed) for level in LEVELS[1:3]
    }
    cast, _ = step(make_model(name, cast=True), level="resident")
    figures["cast"] = {
        level: error(step(make_model(name, cast=True), level=level)[0], cast) for level in LEVELS[1:3]
    }

    foreseen = SimpleNamespace(
        model=SimpleNamespace(diffusion_model=meta_model(*read_shapes(file))), patches={}
    )
    for what, planned_for in (("planned", model), ("foreseen", foreseen)):
        figures[what] = {}
        for level in LEVELS:
            config = TrainConfig(adapter=ADAPTER, batch_size=2, memory=MemoryConfig(level=level))
            denoiser = HostDenoiser(model, tuple(LATENTS.shape))
            plan = plan_memory(planned_for, denoiser, config, LATENTS.shape[1:], file)
            figures[what][level] = {"weights": plan.weights, "activations": plan.activations}
    return figures


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({name: figures_of(name, Path(folder)) for name in SHAPES}))


main()
