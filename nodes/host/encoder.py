"""The graph's VAE and CLIP as the engine's Encoder."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import numpy as np
import torch
from torch import Tensor

from ...trainer.dataset.encoded import Encoder
from .fingerprint import module_fingerprint


class HostEncoder(Encoder):
    """Encodes one image or caption at a time; between two of them the host's interrupt is honoured."""

    def __init__(self, vae: Any, clip: Any) -> None:
        self._vae, self._clip = vae, clip
        self.image_fingerprint = module_fingerprint(vae.first_stage_model)
        options = (
            str(clip.layer_idx),
            str(sorted(clip.tokenizer_options.items())),
            _patches_id(clip.patcher),
        )
        self.text_fingerprint = module_fingerprint(clip.cond_stage_model, extra=options)

    def encode_image(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) fp32 in 0..1 -> (C, 1, h, w) of a video VAE, (C, h, w) of an image VAE."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self._vae.encode(torch.from_numpy(pixels)[None])[0]

    def encode_text(self, caption: str) -> dict[str, Tensor]:
        """The first schedule entry's tensors, without batch dimension."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        cond, extras = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(caption))[0]
        found = {
            name: value[0] for name, value in extras.items() if isinstance(value, Tensor) and len(value) == 1
        }
        return {**found, "cross_attn": cond[0]}


def _patches_id(patcher: Any) -> str:
    """A text encoder with LoRAs on it encodes differently; the host gives each set of patches an id."""
    return str(patcher.patches_uuid) if patcher.patches else ""
