"""Networks of families.py with random weights, inside the host's process: import after inprocess.start()."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch
from families import Case

CPU = torch.device("cpu")
PREFIX = "model.diffusion_model."


def make_model(case: Case) -> Any:
    """A MODEL with random weights, held as a loader node leaves it: as inference tensors."""
    newer = case.newer if hasattr(comfy.supported_models, "LTXAV") else {}
    config = getattr(comfy.supported_models, case.config)({**case.dims, **newer})
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        base = config.get_model(case.state, PREFIX, device=CPU)
        draws = torch.Generator().manual_seed(3)
        weights = dict(base.diffusion_model.named_parameters())
        weights |= {k: b for k, b in base.diffusion_model.named_buffers() if k.endswith("pos_embed")}
        for name, parameter in weights.items():
            values = torch.randn(parameter.shape, generator=draws)
            if parameter.ndim > 1:
                values *= (max(1, values.numel()) / max(1, len(values))) ** -0.5
            else:
                values = 0.1 * values + (0 if name.endswith("bias") else 1)
            parameter.copy_(values)
    base.diffusion_model.eval()
    return comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU)
