"""Builds a network without weights from the names and shapes in a file's header, to choose layers and plan memory.

Every tensor becomes a parameter on the meta device. A module with a two-dimensional "weight" becomes an nn.Linear, and
a module whose children are all numbered becomes an nn.ModuleList, as the lists of blocks of these networks are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import KilnError
from .model_keys import PREFIXES
from .safetensors_file import DTYPES, SafetensorsFile

_PREFIXES = (*PREFIXES, "model.")
_TEXT_PREFIXES = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.")
_PATCH_EMBEDDINGS = ("patch_embedding.weight", "patch_embedding.proj.weight", "x_embedder.proj.weight")
Shapes = dict[str, tuple[int, ...]]


def read_shapes(path: Path) -> tuple[Shapes, torch.dtype]:
    """Shapes of the network's parameters in a safetensors file, by the network's names, and the most frequent dtype.

    Raises:
        KilnError: the file is missing, damaged, or holds no network.
    """
    with SafetensorsFile(path) as file:
        entries = list(file.entries.values())
    prefix = next((p for p in _PREFIXES if any(e.name.startswith(p) for e in entries)), "")
    inside = [e for e in entries if e.name.startswith(prefix)]
    sizes: dict[str, int] = {}
    for e in inside:
        sizes[e.dtype] = sizes.get(e.dtype, 0) + torch.Size(e.shape).numel()
    dtype = DTYPES.get(max(sizes, key=sizes.__getitem__, default=""))
    if dtype is None:
        raise KilnError(f"The file {path.name} holds no network that can be planned for.")
    return {e.name[len(prefix) :]: e.shape for e in inside}, dtype


def read_text_shapes(path: Path) -> tuple[Shapes, torch.dtype]:
    """The same of the text encoders in a checkpoint, or in a file of its own. The q, k and v that OpenCLIP keeps in one
    tensor are three layers, as ComfyUI loads them.

    Raises:
        KilnError: the file is missing or damaged, or holds no text encoder.
    """
    with SafetensorsFile(path) as file:
        entries = list(file.entries.values())
    own = [e for e in entries if e.name.startswith(_TEXT_PREFIXES)]
    if not own and not any(e.name.startswith(PREFIXES) for e in entries):
        own = entries
    shapes: Shapes = {}
    sizes: dict[str, int] = {}
    for e in own:
        name = re.sub(r"^conditioner\.embedders\.(\d+)", r"encoder\1", e.name)
        sizes[e.dtype] = sizes.get(e.dtype, 0) + torch.Size(e.shape).numel()
        if name.endswith("attn.in_proj_weight"):
            part = (e.shape[0] // 3, e.shape[1])
            shapes |= {f"{name.removesuffix('in_proj_weight')}{p}.weight": part for p in "qkv"}
        else:
            shapes[name] = e.shape
    dtype = DTYPES.get(max(sizes, key=sizes.__getitem__, default=""))
    if dtype is None:
        raise KilnError(f"The file {path.name} holds no text encoder that can be planned for.")
    return shapes, dtype


def meta_model(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> nn.Module:
    """A network with these parameters, all on the meta device.

    Args:
        shapes: by full name of the parameter, in model order.
        dtype: of the parameters.

    Returns:
        The network. It has an attribute patch_size where the shape of its patch embedding tells one.
    """
    lists = _module_lists(shapes)
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        parent: nn.Module = root
        for i, part in enumerate(path):
            full = ".".join(path[: i + 1])
            if part not in parent._modules:
                parent.add_module(part, _make_module(full, i == len(path) - 1, full in lists, shapes, dtype))
            parent = parent._modules[part]  # type: ignore[assignment]
        if last not in parent._parameters:
            empty = torch.empty(shape, device="meta", dtype=dtype)
            parent.register_parameter(last, nn.Parameter(empty, requires_grad=False))
    for module in root.modules():
        if isinstance(module, nn.ModuleList):  # files often sort names as text: 1, 10, 2
            module._modules = dict(sorted(module._modules.items(), key=lambda item: int(item[0])))
    patch_size = _patch_size(shapes)
    if patch_size:
        root.patch_size = patch_size  # type: ignore[assignment]
    return root


def _module_lists(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Full names of modules whose children are all called by numbers."""
    children: dict[str, set[str]] = {}
    for name in shapes:
        path = name.split(".")
        for i in range(1, len(path)):
            children.setdefault(".".join(path[:i]), set()).add(path[i])
    return {name for name, names in children.items() if all(map(str.isdigit, names))}


def _make_module(
    name: str, is_leaf: bool, is_list: bool, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> nn.Module:
    """The module of that full name, without its children: nn.Linear, nn.ModuleList or an empty nn.Module."""
    weight = shapes.get(f"{name}.weight", ())
    if is_leaf and len(weight) == 2:
        return nn.Linear(weight[1], weight[0], f"{name}.bias" in shapes, "meta", dtype)
    return nn.ModuleList() if is_list else nn.Module()


def _patch_size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The kernel of the convolution that embeds patches, (f, h, w) or (h, w); () where there is no such layer."""
    return tuple(next((shapes[n][2:] for n in _PATCH_EMBEDDINGS if len(shapes.get(n, ())) > 3), ()))
