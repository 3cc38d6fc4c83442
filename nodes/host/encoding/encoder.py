"""The graph's VAE and CLIP as the engine's Encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import numpy as np
import torch
from torch import Tensor

from ....trainer.conditioning import ItemConditioning, check_trainable, equal
from ....trainer.dataset.encoded import Encoder
from ....trainer.dataset.items import Item
from ....trainer.errors import KilnError
from ..memory.gate import DeviceGate
from ..models.fingerprint import module_fingerprint
from ..models.literal import EXAMPLE, is_syntax
from ..models.text_encoder import text_fingerprint, word_for_word
from .image_conditioning import ControlWay, FirstFrame, ImageConditioner
from .text_batches import encode_together, equal_alone

FEWEST = 3  # captions that are worth comparing


class HostEncoder(Encoder):
    """Encodes batches of pixels and single captions; between two calls the host's interrupt is honoured."""

    def __init__(
        self,
        vae: Any,
        clip: Any,
        prompt_syntax: bool = True,
        first_frame: FirstFrame = "none",
        controls: ControlWay = "auto",
        clip_vision: Any = None,
    ) -> None:
        """prompt_syntax: captions may hold weights and embeddings, as prompts do; else they are taken word for word.
        The others are those of ImageConditioner.
        """
        # The host crops what it encodes to multiples of 8, frames too, which leaves nothing of a batch of stills; a
        # copy of the wrapper (the weights are shared) is told not to: our sizes are multiples of 16.
        self._vae = copy.copy(vae)
        self._vae.crop_input = False
        self._clip, self._as_prompt = clip, clip
        if not prompt_syntax:
            self._clip = word_for_word(clip)
        self._together, self._compared = True, False
        self._reads_syntax: bool | None = None
        self._pictures = ImageConditioner(self._vae, self._clip, first_frame, controls, clip_vision)
        self._video = vae.latent_dim == 3 and not getattr(vae, "not_video", False)
        self.image_fingerprint = module_fingerprint(vae.first_stage_model)
        self.text_fingerprint = text_fingerprint(clip)

    def make_room(self) -> None:
        """Take every model off the device, the one to be trained among them; a run in the background steps aside."""
        DeviceGate.wait_until_free()
        comfy.model_management.unload_all_models()

    def encode_pixels(self, pixels: np.ndarray) -> Tensor:
        """(B, F, H, W, 3) fp32 in 0..1 -> (B, C, F', h, w) of a video VAE, (B, C, h, w) of an image VAE."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        batch = torch.from_numpy(pixels)
        if self._video:
            return self._vae.encode(batch)
        if batch.shape[1] > 1:
            raise KilnError(
                "This VAE encodes stills only and the dataset holds clips; set max_frames to 1 to train on one frame "
                "of each."
            )
        return self._vae.encode(batch[:, 0])

    def reading_of(self, caption: str) -> str:
        """ "literal" where the caption's signs would mean something else in a prompt."""
        if self._clip is self._as_prompt or not is_syntax(caption):
            return ""
        if self._reads_syntax is None:  # some tokenizers take every text word for word
            plain, prompt = (clip.tokenize(EXAMPLE) for clip in (self._clip, self._as_prompt))
            self._reads_syntax = not equal(plain, prompt)
        return "literal" if self._reads_syntax else ""

    def guide_of(self, item: Item, frames: int) -> str:
        """As Encoder has it."""
        return self._pictures.guide_of(item, frames)

    def text_sees_controls(self, item: Item) -> str:
        """As Encoder has it."""
        return self._pictures.text_sees_controls(item)

    def text_sees_first_frame(self, item: Item) -> str:
        """As Encoder has it."""
        return self._pictures.text_sees_first_frame()

    def encode_guide(
        self, item: Item, frames: np.ndarray, controls: Sequence[np.ndarray]
    ) -> ItemConditioning:
        """As Encoder has it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self._pictures.guide(item, frames, controls)

    def encode_text(self, caption: str, pictures: Sequence[np.ndarray] = ()) -> ItemConditioning:
        """Everything the text encoder gives for a caption, and for the pictures that it looks at.

        Raises:
            KilnError: it gives several conditionings, each for a part of the sampling's steps.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        if pictures:
            return _the_only_one(self._pictures.text(caption, pictures))
        return encode_caption(self._clip, caption)

    def encode_texts(self, captions: Sequence[str]) -> list[ItemConditioning]:
        """Of several captions at once, where that gives what the host gives for each alone."""
        if self._together and len(captions) >= FEWEST:
            found = self._encode_together(captions)
            if found is not None:
                return found
            self._together = False
        return [self.encode_text(caption) for caption in captions]

    def _encode_together(self, captions: Sequence[str]) -> list[ItemConditioning] | None:
        try:
            found = encode_together(
                self._clip.cond_stage_model, len(captions), lambda number: self.encode_text(captions[number])
            )
        except comfy.model_management.OOM_EXCEPTION:
            comfy.model_management.soft_empty_cache()
            return None
        if found is not None and not self._compared:
            longest = max(range(len(captions)), key=lambda number: len(captions[number]))
            self._compared = equal_alone(found[longest], self.encode_text(captions[longest]))
            return found if self._compared else None
        return found


def encode_caption(clip: Any, caption: str) -> ItemConditioning:
    """Everything that a CLIP gives for a caption, as the host's own node asks for it.

    Raises:
        KilnError: it gives several conditionings, each for a part of the sampling's steps.
    """
    return _the_only_one(clip.encode_from_tokens_scheduled(clip.tokenize(caption)))


def _the_only_one(scheduled: Sequence[Any]) -> ItemConditioning:
    if len(scheduled) != 1:
        raise KilnError(
            f"The text encoder gives {len(scheduled)} conditionings for one caption, each for a part of the "
            "sampling's steps; connect the CLIP from before the node that schedules its LoRAs (hooks)."
        )
    cond, extras = scheduled[0]
    check_trainable(extras)
    return {**extras, "cross_attn": cond}
