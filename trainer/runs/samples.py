"""Samples drawn during a run: the protocol of what draws them, and their files.

    <run folder>/samples/00000250-00.png      of a video the middle frame
    <run folder>/samples/00000250-00.webp     of a video all frames, moving

The name says the step and the place among that step's pictures. Both files hold the graph in their metadata, as the
host's own do: dropped on the canvas, they bring it back.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..events import Listener, SampleEvent, Stopped
from ..memory.out_of_memory import free_memory
from ..safefile import replacing

log = logging.getLogger(__name__)

FOLDER = "samples"  # in a run's folder
EXIF_TAGS = {"prompt": 0x0110, "workflow": 0x010F}  # where the host's frontend looks in a WEBP


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture on disk."""

    place: int  # among the pictures of its step
    prompt: str
    path: Path  # PNG
    animated: bool  # a WEBP lies beside it


class Sampler(Protocol):
    """Draws with a LoRA that is being trained."""

    def draw(self, adapter: dict[str, Tensor] | None, step: int) -> Iterator[Sample]:
        """Draw and write every picture of one step, one after the other.

        Args:
            adapter: its state dict (see trainer.adapter.inject); None draws the model without it.
            step: for the files' names.

        Raises:
            Stopped: the run was told to stop meanwhile.
            Anything else: the pictures that are missing could not be drawn; the run goes on without them.
        """
        ...


def draw_samples(
    sampler: Sampler,
    adapter: dict[str, Tensor] | None,
    step: int,
    emit: Listener,
    say: Callable[[str], None],
) -> None:
    """Let the sampler draw and tell of each picture; whatever fails is a sentence, and the run goes on.

    Raises:
        Stopped: the run was told to stop meanwhile.
    """
    failure = ""
    try:
        for drawn in sampler.draw(adapter, step):
            emit(SampleEvent(step=step, **vars(drawn)))
    except Stopped:
        raise
    except Exception as error:
        log.exception("sampling failed")
        failure = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    if failure:  # here the error, and the memory that its frames held, are gone
        free_memory()
        say(
            f"No samples at step {step} ({failure}); training goes on. Mend or disconnect Sample Settings for the "
            "next run."
        )


def sample_path(run_folder: Path, step: int, place: int) -> Path:
    """The PNG of one picture; the moving one has the suffix .webp."""
    return run_folder / FOLDER / f"{step:08d}-{place:02d}.png"


def write_sample(path: Path, frames: np.ndarray, fps: float, graph: Mapping[str, Any]) -> bool:
    """Write the middle frame, and of more than one frame the moving picture too.

    Args:
        path: see sample_path.
        frames: (F, H, W, 3), uint8.
        fps: frames per second of the moving picture.
        graph: "prompt" and "workflow", plain values; empty ones are left out.

    Returns:
        whether there is a moving picture.

    Raises:
        KilnError: writing failed; no half-written file is left behind.
    """
    texts = {name: json.dumps(graph[name]) for name in EXIF_TAGS if graph.get(name)}
    pictures = [Image.fromarray(frame) for frame in frames]
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    moving = len(pictures) > 1
    if moving:  # first: whoever sees the PNG finds both
        exif = pictures[0].getexif()
        for name, text in texts.items():
            exif[EXIF_TAGS[name]] = f"{name}:{text}"
        options = {"duration": round(1000 / fps), "loop": 0, "quality": 85, "exif": exif}
        _write(path.with_suffix(".webp"), pictures[0], save_all=True, append_images=pictures[1:], **options)
    _write(path, pictures[len(pictures) // 2], pnginfo=info)
    return moving


def thumbnail(path: Path, side: int = 160) -> bytes:
    """A small JPEG of a picture, at most `side` pixels wide and high."""
    file = io.BytesIO()
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side))
    small.save(file, format="JPEG", quality=85)
    return file.getvalue()


def _write(path: Path, picture: Image.Image, **options: Any) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format=path.suffix[1:].upper(), **options)


def latest_thumbnail(run_folder: Path, side: int = 256) -> bytes:
    """A small JPEG of the first picture of the latest step; empty where none was drawn, or it cannot be read."""
    pictures = sorted((run_folder / FOLDER).glob("*-00.png"))
    try:
        return thumbnail(pictures[-1], side) if pictures else b""
    except OSError as error:  # Pillow's own error is one
        log.warning("The LoRA's thumbnail cannot be made of %s (%s).", pictures[-1].name, error)
        return b""
