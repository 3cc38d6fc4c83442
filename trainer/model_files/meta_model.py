"""A network without weights, from the names and shapes in a file's header: enough to choose layers and plan memory.

Every tensor becomes a parameter on the meta device; a two-dimensional "weight" becomes a linear layer; a module whose
members are numbered becomes a list, as all that hold the blocks of this field's networks are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import KilnError
from .safetensors_file import DTYPES, SafetensorsFile

# What files put before the network's own names: whole checkpoints, and files of diffusion models alone
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
PATCHES = ("patch_embedding.weight", "patch_embedding.proj.weight", "x_embedder.proj.weight")
Shapes = dict[str, tuple[int, ...]]


def read_shapes(path: Path) -> tuple[Shapes, torch.dtype]:
    """The tensors of the network in a safetensors file, by the network's names, and the type that most values have.

    Raises:
        KilnError: the file is missing, damaged, or holds no network.
    """
    with SafetensorsFile(path) as file:
        entries = list(file.entries.values())
    prefix = next((p for p in PREFIXES if any(e.name.startswith(p) for e in entries)), "")
    inside = [e for e in entries if e.name.startswith(prefix)]
    sizes: dict[str, int] = {}
    for e in inside:
        sizes[e.dtype] = sizes.get(e.dtype, 0) + torch.Size(e.shape).numel()
    dtype = DTYPES.get(max(sizes, key=sizes.__getitem__, default=""))
    if dtype is None:
        raise KilnError(f"The file {path.name} holds no network that can be planned for.")
    return {e.name[len(prefix) :]: e.shape for e in inside}, dtype


def meta_model(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> nn.Module:
    """The network.

    Args:
        shapes: by full name of the parameter, in model order.
        dtype: of the weights when they are loaded.
    """
    lists = _lists(shapes)
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        at: nn.Module = root
        for i, part in enumerate(path):
            full = ".".join(path[: i + 1])
            if part not in at._modules:
                at.add_module(part, _module(full, i == len(path) - 1, full in lists, shapes, dtype))
            at = at._modules[part]  # type: ignore[assignment]
        if last not in at._parameters:
            empty = torch.empty(shape, device="meta", dtype=dtype)
            at.register_parameter(last, nn.Parameter(empty, requires_grad=False))
    for module in root.modules():
        if isinstance(module, nn.ModuleList):  # files are often in the order of the alphabet: 1, 10, 2
            module._modules = dict(sorted(module._modules.items(), key=lambda item: int(item[0])))
    patch = _patch(shapes)
    if patch:
        root.patch_size = patch  # type: ignore[assignment]
    return root


def _lists(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Names of modules whose members are numbered and nothing else."""
    members: dict[str, set[str]] = {}
    for name in shapes:
        path = name.split(".")
        for i in range(1, len(path)):
            members.setdefault(".".join(path[:i]), set()).add(path[i])
    return {name for name, parts in members.items() if all(map(str.isdigit, parts))}


def _module(
    name: str, is_leaf: bool, is_list: bool, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> nn.Module:
    weight = shapes.get(f"{name}.weight", ())
    if is_leaf and len(weight) == 2:
        return nn.Linear(weight[1], weight[0], f"{name}.bias" in shapes, "meta", dtype)
    return nn.ModuleList() if is_list else nn.Module()


def _patch(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Sides of a patch, from the kernel of the layer that cuts the latent into them; () where it is not to be seen."""
    return tuple(next((shapes[n][2:] for n in PATCHES if len(shapes.get(n, ())) > 3), ()))
