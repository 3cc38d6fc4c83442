"""Samples: prompts, size and sampler."""

from __future__ import annotations

from dataclasses import dataclass

from ..parsers import lines_of
from .fields import check_ranges, setting

PROMPTS = ("prompts", "negative_prompt")  # the settings that hold words of the user


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What is drawn during the run, to see what the LoRA has learned; the LoRA is the same with and without."""

    prompts: str = setting(
        "",
        "What to draw, one prompt per line; use the trigger word of your captions.",
        multiline=True,
    )
    negative_prompt: str = setting("", "What to keep out of all of them; may be empty.", multiline=True)
    every: int = setting(
        250, "Steps between samples, 0 for only when asked and at the end.", minimum=0, maximum=1_000_000
    )
    at_start: bool = setting(True, "Also before the first step: the model without the LoRA, to compare with.")
    width: int = setting(512, "Width of the samples in pixels.", minimum=16, maximum=8192, step=16)
    height: int = setting(512, "Height of the samples in pixels.", minimum=16, maximum=8192, step=16)
    length: int = setting(
        1,
        "Frames, 1 for a still. Wan takes 4n+1, such as 33. Of a video the middle frame is shown, and all in motion.",
        minimum=1,
        maximum=1025,
        step=4,
    )
    fps: float = setting(
        16.0, "Frames per second of the moving preview; Wan makes 16.", minimum=1.0, maximum=120.0, step=1.0
    )
    sampler_steps: int = setting(20, "Steps of the sampler for each picture.", minimum=1, maximum=1000)
    cfg: float = setting(
        6.0,
        "Classifier-free guidance; 6 suits Wan, 1 is twice as fast and right for distilled models.",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
    )
    sampler_name: str = setting("uni_pc", "The host's sampler, as in KSampler.")
    scheduler: str = setting("simple", "The host's scheduler, as in KSampler.")
    sample_seed: int = setting(
        0,
        "Seed of each prompt's first picture, always the same, so that pictures of all steps can be compared.",
        minimum=0,
        maximum=0xFFFFFFFFFFFFFFFF,
    )
    pictures: int = setting(
        1, "Pictures per prompt; the seed goes up by 1 from one to the next.", minimum=1, maximum=16
    )
    strength: float = setting(
        1.0, "Strength at which the LoRA is on.", minimum=-10.0, maximum=10.0, step=0.05
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    def each(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every picture, in the order in which they are drawn."""
        lines = [line.strip() for line in lines_of(self.prompts) if line.strip()]
        return [(line, (self.sample_seed + i) % 2**64) for line in lines for i in range(self.pictures)]
