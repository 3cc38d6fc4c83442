"""Loading the trained model as the host does, and giving its weights to a shared clone of its network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import comfy.model_management
import torch
from torch import nn

from ....trainer.errors import KilnError
from ....trainer.memory.mapped import release_copies
from ....trainer.memory.shared_clone import SharedClone
from ....trainer.memory.streams import copy_in_turn
from .frozen_weights import DYNAMIC_STATE, as_linear_layers
from .lent_layers import request_weights_in_backward

NO_ROOM = 1 << 60  # bytes, more than any device has


class ModelLoader:
    """Loads one MODEL for training, once per session."""

    def __init__(self, patcher: Any, batch_shape: tuple[int, ...], beside: Sequence[Any] = ()) -> None:
        """
        Args:
            patcher: a clone of the MODEL.
            batch_shape: the largest batch of latents, to ask the host for room.
            beside: patchers of further networks that are to be on the device at the same time.
        """
        self._patcher, self._beside = patcher, list(beside)
        self._network: nn.Module = patcher.model.diffusion_model
        self._batch_shape = batch_shape
        self._device = torch.device(patcher.load_device)
        if not comfy.model_management.device_supports_non_blocking(self._device):
            copy_in_turn(self._device.type)
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
        comfy.model_management.load_models_gpu([self._patcher, *self._beside], memory_required=room)
        self._refuse_captured_modules()
        note = "" if file is None else self._release_copies(file)
        if self._clone is None:
            self._clone = SharedClone(self._network, without=DYNAMIC_STATE)
        with self._clone.weights():
            as_linear_layers(self._clone.module)
            request_weights_in_backward(self._clone.module)
            yield note

    def _refuse_captured_modules(self) -> None:
        """Another node may have replaced a part of the network (add_object_patch). A method of one of its modules is
        rebound to the clone; a function that holds modules of the original would go past the adapters.

        Raises:
            KilnError: it does.
        """
        modules = {id(m) for m in self._network.modules()}
        for key, value in self._patcher.object_patches.items():
            if key.startswith("diffusion_model.") and any(id(m) in modules for m in captured_modules(value)):
                raise KilnError(
                    f"Another node has replaced {key.removeprefix('diffusion_model.')} by a function that calls the "
                    "model's own layers, so their LoRA could not be trained; connect the model from before that node."
                )

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


def captured_modules(value: Any) -> Iterator[nn.Module]:
    """The modules that a function holds in its closure, defaults or bound arguments, a method's self aside."""
    if isinstance(value, MethodType):
        yield from captured_modules(value.__func__)
    elif isinstance(value, partial):
        yield from captured_modules(value.func)
        for argument in (*value.args, *value.keywords.values()):
            yield from _modules_in(argument)
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                yield from _modules_in(cell.cell_contents)
        for default in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield from _modules_in(default)


def _modules_in(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, MethodType):
        yield from _modules_in(value.__self__)
        yield from captured_modules(value)
    elif isinstance(value, FunctionType | partial):
        yield from captured_modules(value)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _modules_in(each)
