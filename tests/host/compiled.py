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

from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.compiled import compile_blocks  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.recompute import checkpoint_blocks  # type: ignore[import-not-found]
from one_step import LATENTS, error, load, take_step
from torch import Tensor
from torch._dynamo.utils import counters


def step(compiled: bool, recomputed: bool) -> list[Tensor]:
    """The loss and the gradients."""
    denoiser = HostDenoiser(load(MODEL), tuple(LATENTS.shape))
    with denoiser.session():
        if compiled:
            # The code that a real run compiles for the processor is not what is tested here, and takes minutes
            compile_blocks(denoiser.module, backend="aot_eager", whole=True)
        if recomputed:
            checkpoint_blocks(denoiser.module)
        config = AdapterConfig(rank=4, alpha=2.0, dropout=0.0)
        return take_step(denoiser, make_adapter(denoiser.module, config, 0, host_weights))


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
