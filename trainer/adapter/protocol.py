"""The interface of every kind of adapter to the training loop."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import KilnError

TEXT_ENCODER = "text_encoders."
"""Before the names of a text encoder's layers, in states and files: ComfyUI's own prefix."""


class Adapter(Protocol):
    """Trained layers of one kind inside a shared clone (memory/shared_clone.py)."""

    @property
    def weights_loaded(self) -> bool:
        """Whether state_dict can be called: False while the frozen weights that it needs are off the device."""
        ...

    def set_step(self, seed: int, micro_step: int) -> None:
        """Training mode for one forward and backward; seed and micro-step choose the dropout masks."""
        ...

    def switched_off(self) -> AbstractContextManager[None]:
        """Inside, the network answers as without the adapter; backward is for outside."""
        ...

    def reversed(self) -> AbstractContextManager[None]:
        """Inside, the update counts with the other sign, in forward and in backward. For the kind lora."""
        ...

    def disable_dropout(self) -> None:
        """Eval mode: no dropout, for validation and sampling."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Everything trained, fp32, in model order."""
        ...

    def output_matrices(self) -> list[nn.Parameter]:
        """The B matrices, for LoRA+; none for kinds without them."""
        ...

    def layers_without_gradient(self) -> list[str]:
        """Names of the layers whose gradients are all zero or missing; between backward and the optimizer step."""
        ...

    def limit_norms(self) -> None:
        """Scale updates down to max_weight_norm; after every step."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """By "<layer>.<part>": copies on the CPU, fp32."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse; raises KilnError for other layers or shapes."""
        ...


def without_gradient(parameters: dict[str, list[nn.Parameter]]) -> list[str]:
    """Of parameters by layer name, the layers whose gradients are all zero or missing. Waits for the device once."""
    grads = {name: [p.grad for p in each if p.grad is not None] for name, each in parameters.items()}
    names = [name for name, each in grads.items() if each]
    if not names:
        return list(grads)
    sizes = torch.stack([torch.stack([g.detach().abs().max() for g in grads[name]]).max() for name in names])
    reached = {name for name, size in zip(names, sizes.tolist(), strict=True) if size}
    return [name for name in grads if name not in reached]


def split_state_key(key: str) -> tuple[str, str]:
    """A key of a state dict as layer and part: "blocks.0.q.lora_A.weight" -> ("blocks.0.q", "lora_A.weight")."""
    stem = key.removesuffix(".weight")
    layer, _, part = stem.rpartition(".")
    return layer, part + key[len(stem) :]


def load_tensors(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Copy a saved state into an adapter's tensors; raises KilnError when one is missing or has another shape."""
    for key, tensor in tensors.items():
        if key not in state or state[key].shape != tensor.shape:
            found = tuple(state[key].shape) if key in state else "nothing"
            raise KilnError(
                f"The saved adapter does not fit: {key} has {found}, this run needs {tuple(tensor.shape)}. "
                "Use the rank and target modules it was made with, or start a new run."
            )
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(state[key])
