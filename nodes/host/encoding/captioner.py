"""A CLIP of the host that can write text about pictures, as the engine's Captioner.

Host 0.33 has text generation (`CLIP.generate`, its node Generate Text); 0.3.75 has none. Which of its models look at
pictures is not asked by name: one does if its tokenizer puts the picture among the tokens.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfyui_version import __version__ as HOST_VERSION
from PIL import Image
from torch import Tensor

from ....trainer.dataset.captioning import Answer, Captioner
from ....trainer.errors import KilnError
from ..memory.gate import DeviceGate
from ..models.fingerprint import module_fingerprint

TOP_K, TOP_P, MIN_P, REPETITION = 64, 0.95, 0.05, 1.05
"""Defaults of the host's Generate Text."""

SHEET_HINT = "The picture shows {} frames of one clip, in order, row by row.\n"


class HostCaptioner(Captioner):
    """Asks the model as the host's own node does."""

    def __init__(self, clip: Any) -> None:
        """
        Raises:
            KilnError: this host, or this model, writes no text about pictures.
        """
        if not hasattr(clip, "generate"):  # host 0.3.75
            raise KilnError(
                f"ComfyUI {HOST_VERSION} has no text generation; update it to 0.33 or newer, or let another pack write "
                "captions and connect them to Images To Dataset."
            )
        self._clip = clip
        if not _writes(clip.cond_stage_model) or not _pictures_in(
            self._tokens("", torch.zeros(1, 64, 64, 3))
        ):
            kind = type(clip.cond_stage_model).__name__.rstrip("_")
            raise KilnError(
                f"This text encoder ({kind}) does not write about pictures; load one that does, as Qwen3-VL, Qwen 3.5, "
                "Gemma 3 or Gemma 4."
            )
        patches = str(clip.patcher.patches_uuid) if clip.patcher.patches else ""
        self.fingerprint = module_fingerprint(clip.cond_stage_model, extra=(patches,))

    def describe(
        self,
        pictures: Sequence[Image.Image],
        instruction: str,
        *,
        most_tokens: int,
        temperature: float,
        seed: int,
    ) -> Answer:
        """As Captioner has it."""
        DeviceGate.wait_until_free()
        comfy.model_management.throw_exception_if_processing_interrupted()
        tokens = self._tokens_of(pictures, instruction)
        with _bar_is_ours():
            written = self._clip.generate(
                tokens,
                do_sample=temperature > 0,
                max_length=most_tokens,
                temperature=max(temperature, 0.01),
                top_k=TOP_K,
                top_p=TOP_P,
                min_p=MIN_P,
                repetition_penalty=REPETITION,
                seed=seed % 2**63,
            )
        return Answer(str(self._clip.decode(written)), cut=len(written) >= most_tokens)

    def _tokens_of(self, pictures: Sequence[Image.Image], instruction: str) -> Any:
        """Frames of a clip as the model takes them: as a video, as several pictures, or laid out on one."""
        batch = torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) / 255 for p in pictures]))
        if len(batch) == 1:
            return self._tokens(instruction, batch)
        as_video = self._tokens(instruction, None, video=batch, fps=1)  # Gemma 4 would take every 24th frame
        if _pictures_in(as_video) == len(batch):
            return as_video
        as_pictures = self._tokens(instruction, batch)
        if _pictures_in(as_pictures) == len(batch):
            return as_pictures
        hint = SHEET_HINT.format(len(batch))  # Gemma 3 takes one picture
        return self._tokens(hint + instruction, _sheet(batch))

    def _tokens(self, text: str, image: Tensor | None, **video: Any) -> Any:
        return self._clip.tokenize(
            text, image=image, skip_template=False, min_length=1, thinking=False, **video
        )


def _writes(model: torch.nn.Module) -> bool:
    from comfy.text_encoders.llama import BaseGenerate  # host 0.33; 0.3.75 has no such class

    return any(isinstance(module, BaseGenerate) for module in model.modules())


def _pictures_in(tokens: Any) -> int:
    """How many pictures stand among tokens."""
    rows = [row for value in tokens.values() for row in value]
    return sum(isinstance(t[0], dict) and t[0].get("type") == "image" for row in rows for t in row)


def _sheet(frames: Tensor) -> Tensor:
    """(F, H, W, 3) -> (1, S, S, 3), in reading order on white; square, because Gemma 3 is shown the middle square."""
    count, height, width, _ = frames.shape
    columns = math.ceil(math.sqrt(count))
    side = max(math.ceil(count / columns) * height, columns * width)
    sheet = torch.ones(1, side, side, 3)
    for n, frame in enumerate(frames):
        top, left = n // columns * height, n % columns * width
        sheet[0, top : top + height, left : left + width] = frame
    return sheet


@contextmanager
def _bar_is_ours() -> Iterator[None]:
    """The host moves the node's bar with every token; ours counts items. Its interrupt is still looked at."""
    before, thread = comfy.utils.PROGRESS_BAR_HOOK, threading.get_ident()
    active = True

    def quiet(*args: Any, **kwargs: Any) -> None:
        if active and threading.get_ident() == thread:
            comfy.model_management.throw_exception_if_processing_interrupted()
        elif before is not None:
            before(*args, **kwargs)  # another thread's, or somebody kept this function

    comfy.utils.PROGRESS_BAR_HOOK = quiet
    try:
        yield
    finally:
        active = False
        if comfy.utils.PROGRESS_BAR_HOOK is quiet:  # else a run's gate has come up or gone down meanwhile
            comfy.utils.PROGRESS_BAR_HOOK = before
