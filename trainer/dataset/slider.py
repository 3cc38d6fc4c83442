"""What a slider is trained on: words for its two ends instead of pictures (Concept Sliders, Gandikota et al. 2023,
arXiv 2311.12092).

    target "face", positive "old face", negative "young face", preserve "man", "woman"

Every attribute that is to stay is put before all three, as the paper's sets of preserved attributes are, and one is
drawn for each sample: "man, face", "man, old face", "man, young face". The noisy latents are made of what the model
itself draws for the target. The loss is in trainer/loop/slider.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..conditioning import ItemConditioning
from ..errors import KilnError, shortened
from ..parsers import lines_of
from .encoded import EncodedDataset
from .from_graph import encoded_from_latents, keep_conditioning


@dataclass(frozen=True)
class SliderTargets:
    """The words of a slider, and how far its ends lie.

    Raises:
        KilnError: a text is empty, or both ends are the same.
    """

    target: str  # what is changed
    positive: str  # what strength 1 makes of it
    negative: str  # what strength -1 makes of it
    preserve: tuple[str, ...] = ()  # attributes that are to stay
    guidance: float = 3.0  # times the way between the ends: ai-toolkit has 3, the code of the paper 4

    def __post_init__(self) -> None:
        for name in ("target", "positive", "negative"):
            if not getattr(self, name).strip():
                raise KilnError(
                    f"{name} is empty; a slider needs words for what it changes and for both of its ends."
                )
        if self.positive.split() == self.negative.split():
            raise KilnError(
                f"positive and negative are both {shortened(self.positive.strip())!r}, so there is nothing between "
                "them; write what strength 1 and what strength -1 shall make of the target."
            )

    @property
    def prompts(self) -> list[tuple[str, str, str]]:
        """(target, positive, negative) for each attribute; one without any."""
        ends = [" ".join(text.split()) for text in (self.target, self.positive, self.negative)]
        if not self.preserve:
            return [(ends[0], ends[1], ends[2])]
        return [(f"{a}, {ends[0]}", f"{a}, {ends[1]}", f"{a}, {ends[2]}") for a in self.preserve]

    def describe(self) -> str:
        """In one line."""
        kept = f", keeping {' | '.join(self.preserve)}" if self.preserve else ""
        return f"{self.target.strip()}: {self.negative.strip()} .. {self.positive.strip()}{kept}"


def read_attributes(text: str) -> tuple[str, ...]:
    """One a line, without empty lines and repetitions."""
    return tuple(dict.fromkeys(line for raw in lines_of(text) if (line := " ".join(raw.split()))))


def slider_dataset(
    targets: SliderTargets,
    latent: dict[str, Any],
    encode: Callable[[str], ItemConditioning],
    cache: Path,
) -> EncodedDataset:
    """Encoded items of a slider: one for each latent.

    Args:
        targets: the words.
        latent: a LATENT of what the model draws for the target, {"samples": (B, C, [F,] h, w)}.
        encode: a text's conditioning.
        cache: folder of the encoded files.

    Raises:
        KilnError: the latents are empty or cannot be trained on, a conditioning cannot be kept, or the disk is full.
    """
    samples = latent["samples"]
    if isinstance(samples, Tensor) and not samples.any():
        raise KilnError(
            "latent is an empty latent, which holds no picture to change; connect what a sampler draws of the target, "
            "16 pictures or so."
        )
    prompts = [[keep_conditioning(encode(text), cache / "texts") for text in row] for row in targets.prompts]
    first = encode(targets.prompts[0][0])
    base = encoded_from_latents([latent], [[_as_entry(first)]], cache)
    texts = [[path for path, _ in row] for row in prompts]
    items = tuple(
        dataclasses.replace(
            item,
            caption=targets.target.strip(),
            text_path=texts[0][0],
            more_texts=tuple(row[0] for row in texts[1:]),
            slider_ends=tuple(path for row in texts for path in row[1:]),
            slider_guidance=targets.guidance,
        )
        for item in base.items
    )
    new = sum(made for row in prompts for _, made in row)
    return EncodedDataset(items, base.encoded_now + new, slider=targets.describe())


def _as_entry(conditioning: ItemConditioning) -> Sequence[Any]:
    """As it stands in a CONDITIONING."""
    rest = dict(conditioning)
    return [rest.pop("cross_attn", None), rest]
