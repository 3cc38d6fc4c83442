"""Loading the trained model as the host does, and giving its weights to a shared clone of its network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import nn

from ....trainer.memory.mapped import release_copies
from ....trainer.memory.shared_clone import SharedClone
from .frozen_weights import as_linear_layers

NO_ROOM = 1 << 60  # bytes, more than any device has


class ModelLoader:
    """Loads one MODEL for training, once per session."""

    def __init__(self, patcher: Any, batch_shape: tuple[int, ...]) -> None:
        """patcher: a clone of the MODEL. batch_shape: the largest batch of latents, to ask the host for room."""
        self._patcher = patcher
        self._network: nn.Module = patcher.model.diffusion_model
        self._batch_shape = batch_shape
        self._device = torch.device(patcher.load_device)
        self._clone: SharedClone | None = None

    @property
    def module(self) -> nn.Module:
        """The clone of the network that is trained; there is one inside `session` only."""
        assert self._clone is not None, "there is a module only inside session()"
        return self._clone.module

    @contextmanager
    def session(self, whole: bool = True, file: Path | None = None) -> Iterator[str]:
        """Load the model as the host does for sampling, with room for activations, and give its weights to the clone.

        Args and what is yielded: see trainer.denoiser.Denoiser.session.
        """
        room = 3 * self._patcher.memory_required(list(self._batch_shape))
        if not whole and self._device.type != "cpu":
            # Asked for more room than there is, the host keeps the weights of its layers on the offload device, with
            # the patches of other nodes as functions that host_weights applies. It leaves a model alone that is on the
            # device already, so everything goes off it first.
            room = NO_ROOM
            comfy.model_management.free_memory(NO_ROOM, self._device)
        if file is not None:
            # The host pins what it leaves in CPU memory, which would hold the file's pages there
            self._patcher.pin_weight_to_device = lambda key: None
        comfy.model_management.load_models_gpu([self._patcher], memory_required=room)
        note = "" if file is None else self._release_copies(file)
        if self._clone is None:
            self._clone = SharedClone(self._network)
        with self._clone.weights():
            as_linear_layers(self._clone.module)
            yield note

    def _release_copies(self, file: Path) -> str:
        """After loading, when no other node's patches are in the weights; see Denoiser.session. Host 0.33 has no copies
        on a GPU: with dynamic loading its weights are mapped from the file already."""
        if getattr(self._patcher, "is_dynamic", bool)():
            return ""
        return release_copies(self._network, file).sentence()

    def keeps_to_itself(self, owner: nn.Module, name: str) -> bool:
        """Weights that host 0.33 streams itself ("aimdo") with patches on top: only its own way of bringing them in
        applies those."""
        return getattr(owner, f"{name}_lowvram_function", None) is not None
