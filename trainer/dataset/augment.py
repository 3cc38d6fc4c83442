"""Random variants of an item's pixels, through torchvision.

    random resized crop -> horizontal flip -> colour jitter -> gaussian noise

Each variant is encoded once and kept; training draws among them. What a variant looks like is a function of the seed,
the file and the variant's number. All frames of a clip get the same crop, flip and colours (the noise is fresh in each,
as a sensor's is), and a mask follows the geometry.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import KilnError
from ..rng import derive_seed


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The ranges to draw from; the defaults are the tuning guide's."""

    crop_min_scale: float = 0.8
    """Smallest share of the area that a crop keeps, 0.1-1; 1 switches cropping off."""
    horizontal_flip: float = 0.5
    """Probability 0-1 of mirroring left and right."""
    color_jitter: float = 0.2
    """Brightness, contrast and saturation are each multiplied by 1-x to 1+x, 0-1."""
    noise_min: float = 10.0
    noise_max: float = 50.0
    """Range of the gaussian noise's variance on the 0-255 scale; a maximum of 0 switches noise off."""
    variants: int = 4
    """Variants that are encoded per item."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.1 <= self.crop_min_scale <= 1:
            raise KilnError(f"crop_min_scale is {self.crop_min_scale}; it must lie between 0.1 and 1.")
        if not 0 <= self.noise_min <= max(self.noise_max, self.noise_min):
            raise KilnError("The noise's variances must not be negative.")
        if self.noise_max and self.noise_min > self.noise_max:
            raise KilnError(
                f"The noise's smallest variance {self.noise_min} is above its largest, {self.noise_max}; swap them."
            )

    @property
    def room(self) -> float:
        """How much larger than the training size a side is read, so that a crop need not be enlarged."""
        return self.crop_min_scale**-0.5


def augment(
    frames: Tensor,  # (F, H, W, 3) uint8, already of the target's shape
    mask: Tensor | None,  # (H, W) in 0..1
    size: tuple[int, int],  # width and height of the result
    settings: Augmentation,
    variant: tuple[int, ...],
) -> tuple[Tensor, Tensor | None]:
    """One variant.

    Args:
        variant: numbers that tell it from all others (of its file and of the variant).

    Returns:
        Frames (F, h, w, 3) fp32 in 0..1 and the mask (h, w).
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    width, height = size
    jitter, aspect = settings.color_jitter, width / height
    steps = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(
                (height, width),
                scale=(settings.crop_min_scale, 1.0),
                ratio=(aspect, aspect),
                interpolation=v2.InterpolationMode.BICUBIC,
                antialias=True,
            ),
            v2.RandomHorizontalFlip(settings.horizontal_flip),
            v2.ColorJitter(jitter, jitter, jitter),
        ]
    )
    video = tv_tensors.Video(frames.movedim(-1, 1))
    shape = tv_tensors.Mask(torch.ones(frames.shape[1:3]) if mask is None else mask)
    with _drawing_from(derive_seed(settings.seed, "augment", *variant)):
        video, shape = steps(video, shape)
        variance = torch.empty(1).uniform_(settings.noise_min, max(settings.noise_min, settings.noise_max))
        if settings.noise_max:
            video = v2.functional.gaussian_noise(video, sigma=float(variance) ** 0.5 / 255, clip=False)
    changed = video.as_subclass(torch.Tensor).clamp(0, 1).movedim(1, -1)
    return changed.contiguous(), None if mask is None else shape.as_subclass(torch.Tensor)


def crop_of(
    before: tuple[int, int], size: tuple[int, int], settings: Augmentation, variant: tuple[int, ...]
) -> tuple[float, float, float]:
    """What `augment` cuts off at the left and at the top of a variant, and by what it then enlarges the rest.

    Args:
        before, size: width and height of what it gets and gives.
        variant: as for augment.

    Returns:
        Left and top in pixels of what it gets (after a flip of its right side), and the factor.
    """
    from torchvision.transforms import v2

    width, height = size
    crop = v2.RandomResizedCrop(
        (height, width), scale=(settings.crop_min_scale, 1.0), ratio=(width / height, width / height)
    )
    with _drawing_from(derive_seed(settings.seed, "augment", *variant)):  # the same draws, in the same order
        cut = crop.make_params([torch.empty(3, before[1], before[0], device="meta")])
        flipped = bool(torch.rand(1) < settings.horizontal_flip)
    left = before[0] - cut["left"] - cut["width"] if flipped else cut["left"]
    return left, cut["top"], width / cut["width"]


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """torchvision draws from torch's global CPU generator: lend it a seed, and put its state back."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU too
        yield
