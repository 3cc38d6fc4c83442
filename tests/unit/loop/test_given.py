"""What an item gives the model of its pixels is asked of the model before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.toy import ToyDenoiser, ToyEncoder
from trainer.conditioning import ItemConditioning
from trainer.dataset.buckets import BucketOptions
from trainer.dataset.encode import encode_dataset
from trainer.dataset.encoded import NOISE_MASK, EncodedItem
from trainer.dataset.items import Item
from trainer.dataset.scan import scan_folder
from trainer.denoiser import ConditioningBatch
from trainer.errors import KilnError
from trainer.loop.checks import check_given, untried_device


class Giving(ToyEncoder):
    """Gives the entries of that name."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names

    def guide_of(self, item: Item, frames: int) -> str:
        return " ".join(self._names)

    def encode_guide(
        self, item: Item, frames: np.ndarray, controls: Sequence[np.ndarray]
    ) -> ItemConditioning:
        return {name: torch.ones(1, 1, 6, 8) for name in self._names}


class Deaf(ToyDenoiser):
    """Makes no use of what is given beside the text, as a text-to-video model."""

    def batch_conditioning(
        self, items: Sequence[ItemConditioning], latents: Tensor
    ) -> list[ConditioningBatch]:
        return super().batch_conditioning([{"cross_attn": i["cross_attn"]} for i in items], latents)


def items_with(folder: Path, *names: str) -> tuple[EncodedItem, ...]:
    (folder / "set").mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "set" / "a.png")
    options = BucketOptions(resolution=64)
    return encode_dataset(scan_folder(folder / "set"), Giving(*names), folder / "kept", options).items


@pytest.mark.parametrize(
    "name", ["concat_latent_image", "reference_latents", "vace_frames", "clip_vision_output"]
)
def test_what_a_model_makes_no_use_of_is_refused(tmp_path: Path, name: str) -> None:
    items = items_with(tmp_path, name)
    check_given(ToyDenoiser(), items)
    with pytest.raises(KilnError, match=f"this model makes no use of {name}"):
        check_given(Deaf(), items)


def test_a_frame_in_the_latent_needs_a_model_that_takes_it(tmp_path: Path) -> None:
    items = items_with(tmp_path, NOISE_MASK)
    with pytest.raises(KilnError, match="this model takes none there"):
        check_given(ToyDenoiser(), items)
    taking = ToyDenoiser()
    taking.takes_given_parts = True
    check_given(taking, items)


def test_an_image_to_video_model_needs_an_image(tmp_path: Path) -> None:
    i2v = ToyDenoiser()
    i2v.needs_start_image = True
    (plain := tmp_path / "plain").mkdir()
    with pytest.raises(KilnError, match="the dataset gives it no image; set first_frame"):
        check_given(i2v, items_with(plain))
    (given := tmp_path / "given").mkdir()
    check_given(i2v, items_with(given, "concat_latent_image"))


def test_devices_that_were_never_tried_are_named() -> None:
    assert untried_device(torch.device("cpu")) == untried_device(torch.device("cuda", 0)) == ""
    for kind in ("mps", "xpu"):
        assert f"of the kind {kind}" in untried_device(torch.device(kind))
