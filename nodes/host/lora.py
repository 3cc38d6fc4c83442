"""A LoRA onto a MODEL and CLIP, through the host's own patching, so that it is applied exactly as the host would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
from safetensors import safe_open
from torch import Tensor

from ...trainer.adapter.files import LoraWeights
from ...trainer.errors import KilnError


def read_lora(path: Path) -> LoraWeights:
    """A .safetensors LoRA of any format that the host knows, with its metadata.

    Raises:
        KilnError: the file is damaged or not a safetensors file.
    """
    try:
        with safe_open(path, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
            return LoraWeights(tensors, opened.metadata())
    except Exception as error:  # safetensors has its own error type
        raise KilnError(
            f"The LoRA file {path.name} cannot be read ({error}); download or train it again."
        ) from error


def apply_lora(
    model: Any, clip: Any | None, lora: Mapping[str, Tensor], strength: float
) -> tuple[Any, Any | None]:
    """A clone of model (and clip) with the LoRA on at `strength`; the same objects at strength 0.

    Raises:
        KilnError: no key of the LoRA belongs to the model or the text encoder.
    """
    if strength == 0:
        return model, clip
    keys: dict[str, Any] = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), keys)
    if not loaded:
        example = next(iter(lora), "nothing")
        raise KilnError(
            f"This LoRA fits neither the model ({type(model.model).__name__}) nor the text encoder: it holds layers "
            f"such as {example!r}. Use it with the kind of model it was trained on."
        )
    new_model = model.clone()
    new_model.add_patches(loaded, strength)
    new_clip = clip
    if clip is not None:
        new_clip = clip.clone()
        new_clip.add_patches(loaded, strength)
    return new_model, new_clip
