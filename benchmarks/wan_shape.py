"""A Wan of any size with random weights, as a model file that the host loads the ordinary way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CHANNELS, TEXT_DIM, FREQ_DIM = 16, 4096, 256


@dataclass(frozen=True)
class WanShape:
    """The numbers a Wan text-to-video model is made of; dim is a multiple of 128 (the size of a head)."""

    dim: int
    ffn: int
    layers: int


SHAPES = {
    "65m": WanShape(768, 3072, 6),
    "1.3b": WanShape(1536, 8960, 30),
    "14b": WanShape(5120, 13824, 40),
}


def tensor_shapes(shape: WanShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by its name in Wan's own files."""
    dim = shape.dim
    tensors: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, CHANNELS, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        "head.modulation": (1, 2, dim),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        tensors[f"{name}.weight"] = (outputs, inputs)
        tensors[f"{name}.bias"] = (outputs,)

    linear("text_embedding.0", TEXT_DIM, dim)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", FREQ_DIM, dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    linear("head.head", dim, CHANNELS * 4)
    for layer in range(shape.layers):
        block = f"blocks.{layer}"
        tensors[f"{block}.modulation"] = (1, 6, dim)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"{block}.{attention}.{part}", dim, dim)
            tensors[f"{block}.{attention}.norm_q.weight"] = (dim,)
            tensors[f"{block}.{attention}.norm_k.weight"] = (dim,)
        tensors[f"{block}.norm3.weight"] = (dim,)
        tensors[f"{block}.norm3.bias"] = (dim,)
        linear(f"{block}.ffn.0", dim, shape.ffn)
        linear(f"{block}.ffn.2", shape.ffn, dim)
    return tensors


def write_wan(path: Path, shape: WanShape, dtype: torch.dtype = torch.float32) -> None:
    """Write a model file with random weights, the same ones every time."""
    draws = torch.Generator().manual_seed(0)
    save_file({k: _values(k, s, draws).to(dtype) for k, s in tensor_shapes(shape).items()}, path)


def _values(name: str, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    return torch.randn(shape, generator=draws) * (0.02 if "modulation" not in name else 0.1)
