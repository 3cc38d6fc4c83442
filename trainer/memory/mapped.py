"""A network's weights as its safetensors file has them, mapped into memory: a page is read when it is copied from, and
the system may drop it again at any time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import KilnError

# What model files put before the network's own names
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")
SAMPLES = 64  # values compared per tensor, spread over it


def map_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file by the network's names, in CPU memory that is the file itself.

    Args:
        path: a safetensors file.
        wanted: the network's own tensors by name; the file's must be the same, whatever their precision.

    Raises:
        KilnError: the file cannot be read, lacks a tensor, or holds other values (the model was changed after loading).
    """
    cure = "choose stream blocks, or connect the model as its loader gives it."
    try:
        with safe_open(path, "pt", device="cpu") as file:
            names = set(file.keys())
            prefix = next((p for p in PREFIXES if p + next(iter(wanted)) in names), "")
            found: dict[str, Tensor] = {}
            for name, own in wanted.items():
                if prefix + name not in names:
                    raise KilnError(
                        f"The file {path.name} cannot be streamed: it holds no {prefix + name}; {cure}"
                    )
                found[name] = file.get_tensor(prefix + name)
                if not _same(found[name], own):
                    raise KilnError(
                        f"The file {path.name} cannot be streamed: its {prefix + name} is not the model's, which was "
                        f"changed after loading; {cure}"
                    )
    except (OSError, SafetensorError) as error:
        raise KilnError(f"The file {path.name} cannot be streamed ({error}); {cure}") from error
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether `a`, in the type of `b`, is `b`: the host may have loaded the file in another precision."""
    if a.shape != b.shape:
        return False
    if b.is_meta or not b.numel():
        return True
    places = torch.linspace(0, b.numel() - 1, min(SAMPLES, b.numel())).long()
    first, second = (t.detach().flatten()[places.to(t.device)].cpu() for t in (a, b))
    return torch.equal(first.to(b.dtype).float(), second.float())
