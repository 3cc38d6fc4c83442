"""A ComfyUI CLIP as the engine's TextEncoder.

Captions are tokenised and encoded by the host's own calls, on a shared clone of the CLIP's modules (see
trainer/memory/shared_clone.py): other nodes never see an adapter. The host computes text encoders in fp32 whatever type
their weights have, so those in fp16 or fp8 are trained as they are.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import nn

from ....trainer.adapter.targets import is_linear
from ....trainer.conditioning import ItemConditioning
from ....trainer.denoiser import TextEncoder
from ....trainer.errors import KilnError
from ....trainer.events import Stopped
from ....trainer.memory.copy_on_write import WriteCheck
from ....trainer.memory.shared_clone import SharedClone
from ..memory.frozen_weights import DYNAMIC_STATE, as_linear_layers
from ..memory.lent_layers import request_weights_in_backward
from .fingerprint import module_fingerprint
from .literal import literal


class HostTextEncoder(TextEncoder):
    """Trains the very weights that the graph's CLIP holds.

    Attributes:
        clip: the graph's.
        patcher: a clone of its, for the device of the model; the denoiser loads both together.
        source: how it was loaded; see models.source.
    """

    def __init__(
        self, clip: Any, device: torch.device, prompt_syntax: bool, source: dict[str, str] | None = None
    ) -> None:
        """
        Args:
            clip: a CLIP.
            device: where the model is trained.
            prompt_syntax: captions may hold weights and embeddings, as prompts do; else they are taken word for word.
            source: how it was loaded.

        Raises:
            KilnError: it has no layers that could be trained, or its LoRAs are scheduled.
        """
        _check_trainable(clip)
        self.clip, self.fingerprint = clip, text_fingerprint(clip)
        self.source = {**(source or {"loader": ""}), "fingerprint": self.fingerprint}
        self.patcher = clip.patcher.clone()
        self.patcher.load_device = device
        self._caller = clip if prompt_syntax else word_for_word(clip)
        self._clone = SharedClone(clip.cond_stage_model, without=DYNAMIC_STATE)
        self._writes = WriteCheck()

    @property
    def module(self) -> nn.Module:
        return self._clone.module

    @contextmanager
    def session(self) -> Iterator[None]:
        """See trainer.denoiser.TextEncoder.session."""
        with self._clone.weights():
            as_linear_layers(self.module)
            request_weights_in_backward(self.module)
            yield

    def encode(self, caption: str) -> ItemConditioning:
        """As the host's CLIPTextEncode; on the device that the host gives its encoders' output."""
        caller = copy.copy(self._caller)
        caller.cond_stage_model, caller.patcher = self.module, self.patcher
        caller.load_model = lambda *_, **__: self.patcher  # the session has loaded it
        try:
            with self._writes.forward(self.module):
                [(cond, extras)] = caller.encode_from_tokens_scheduled(caller.tokenize(caption))
        except comfy.model_management.InterruptProcessingException as interrupt:
            raise Stopped from interrupt
        return {**extras, "cross_attn": cond}


def _check_trainable(clip: Any) -> None:
    layers = clip.cond_stage_model.named_modules()
    if not any(is_linear(m) and re.search(r"\.\d+\.", name) for name, m in layers):
        raise KilnError(
            f"The CLIP on Train LoRA ({type(clip.cond_stage_model).__name__}) has no layers in blocks that a LoRA "
            "could train; disconnect it."
        )
    if clip.use_clip_schedule and clip.patcher.forced_hooks is not None:
        raise KilnError(
            "The LoRAs of the CLIP on Train LoRA are scheduled; connect the CLIP from before the node that schedules "
            "them (hooks)."
        )


def text_fingerprint(clip: Any) -> str:
    """Changes whenever the CLIP's output would; a text encoder with LoRAs on it encodes differently, and the host gives
    each set of patches an id."""
    patches = str(clip.patcher.patches_uuid) if clip.patcher.patches else ""
    options = (str(clip.layer_idx), str(sorted(clip.tokenizer_options.items())), patches)
    # Another clone's LoRA may lie in the weights at the moment
    return module_fingerprint(clip.cond_stage_model, clip.patcher.backup, extra=options)


def word_for_word(clip: Any) -> Any:
    """A CLIP of the same weights that takes text as it stands."""
    changed = copy.copy(clip)
    changed.tokenizer = literal(clip.tokenizer)
    return changed
