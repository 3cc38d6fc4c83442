"""Telling models apart without reading them whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ....trainer.memory.mapped import places_in

SAMPLES = 16  # values read of each tensor, spread over it


def module_fingerprint(
    module: nn.Module, backup: dict[str, Any] | None = None, extra: Iterable[str] = ()
) -> str:
    """Hash of a module's class, tensor names, shapes, types and a few values of each tensor.

    Args:
        module: a network.
        backup: the host's store of original weights, by parameter name, of those that are patched at the moment.
        extra: further strings that must match (options that change the output).
    """
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for text in extra:
        digest.update(b"\0" + text.encode())
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
            original = (backup or {}).get(name)
            value = tensor if original is None else original.weight
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(_sample(value))
    return digest.hexdigest()


def model_fingerprint(patcher: Any) -> str:
    """Of a MODEL's network and of the LoRAs that nodes before us have put on it."""
    prefix = "diffusion_model."
    backup = {k.removeprefix(prefix): v for k, v in patcher.backup.items() if k.startswith(prefix)}
    patches = (
        f"{key}{[(p[0], p[2]) for p in found]}" for key, found in sorted(patcher.patches.items(), key=str)
    )
    return module_fingerprint(patcher.model.diffusion_model, backup, patches)


def _sample(tensor: Tensor) -> bytes:
    if tensor.is_meta or tensor.numel() == 0 or type(tensor) not in (Tensor, nn.Parameter):
        return b""  # host 0.33 keeps some weights on the meta device or quantised: name and shape must do
    flat = tensor.detach().flatten()
    return flat[places_in(flat.numel(), SAMPLES).to(flat.device)].float().cpu().numpy().tobytes()
