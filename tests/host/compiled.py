"""Blocks of the tiny Wan compiled, each in one graph; prints JSON: relative errors against the eager step.

Run by test_memory_levels.py: `python compiled.py MODEL.safetensors` in the host's folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

MODEL = Path(sys.argv[1]).resolve()
inprocess.start()

import comfy.sd
import torch
from lora_kiln.nodes.host.denoiser import HostDenoiser, host_weights  # type: ignore[import-not-found]
from lora_kiln.trainer import objective  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.compiled import compile_blocks  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.recompute import checkpoint_blocks  # type: ignore[import-not-found]
from torch import Tensor
from torch._dynamo.utils import counters

torch.manual_seed(0)
LATENTS, NOISE = torch.randn(2, 16, 1, 8, 6), torch.randn(2, 16, 1, 8, 6)
TEXT, SIGMA = torch.randn(2, 16, 4096), torch.tensor([0.3, 0.8])


def step(compiled: bool, recomputed: bool) -> list[Tensor]:
    """The loss and the gradients."""
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(MODEL))
    denoiser = HostDenoiser(model, tuple(LATENTS.shape))
    with denoiser.session():
        if compiled:
            # The code that a real run compiles for the processor is not what is tested here, and takes minutes
            compile_blocks(denoiser.module, backend="aot_eager", whole=True)
        if recomputed:
            checkpoint_blocks(denoiser.module)
        adapter = make_adapter(
            denoiser.module, AdapterConfig(rank=4, alpha=2.0, dropout=0.0), 0, host_weights
        )
        draws = torch.Generator().manual_seed(1)
        adapter.load_state_dict(
            {k: 0.05 * torch.randn(v.shape, generator=draws) for k, v in adapter.state_dict().items()}
        )
        question = objective.ask(denoiser, denoiser.prepare_latents(LATENTS), NOISE, SIGMA)
        answer = denoiser.forward(question.noisy, question.timestep, {"cross_attn": TEXT})
        loss = objective.loss_per_item(answer, question.target).mean()
        loss.backward()
        return [loss.detach(), *(p.grad for p in adapter.parameters())]


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    eager = step(False, False)
    compiled = step(True, False)
    graphs = counters["stats"]["unique_graphs"]
    print(
        json.dumps(
            {
                "graphs": graphs,
                "error": error(compiled, eager),
                "recomputed": error(step(True, True), eager),
            }
        )
    )


if __name__ == "__main__":
    main()
