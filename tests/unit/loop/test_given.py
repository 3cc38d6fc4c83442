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
from trainer.dataset.encoded import NOISE_MASK, EncodedItem, load_text
from trainer.dataset.from_graph import encoded_from_latents
from trainer.dataset.items import Item
from trainer.dataset.scan import scan_folder
from trainer.denoiser import ConditioningBatch
from trainer.errors import KilnError
from trainer.loop import checks
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


def items_with(folder: Path, *names: str, count: int = 1) -> tuple[EncodedItem, ...]:
    (folder / "set").mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 48), (number, 9, 9)).save(folder / "set" / f"{folder.name}{number}.png")
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


def test_an_image_to_video_model_needs_an_image_for_each_item(tmp_path: Path) -> None:
    i2v = ToyDenoiser()
    i2v.needs_start_image = True
    plain, given = items_with(tmp_path / "plain"), items_with(tmp_path / "given", "concat_latent_image")
    with pytest.raises(KilnError, match=r"1 of 1 items have none \('plain0.png'\); set first_frame"):
        check_given(i2v, plain)
    check_given(i2v, given)
    for items in (given + plain, plain + given):
        with pytest.raises(KilnError, match=r"1 of 2 items have none \('plain0.png'\)"):
            check_given(i2v, items)


def test_an_image_of_a_graph_counts(tmp_path: Path) -> None:
    """As WanImageToVideo puts it into the conditioning that Encoded From Latents keeps whole."""
    i2v = ToyDenoiser()
    i2v.needs_start_image = True
    entry = [[torch.ones(1, 3, 16), {"concat_latent_image": torch.ones(1, 1, 6, 8)}]]
    latent = {"samples": torch.ones(1, 4, 6, 8)}
    check_given(i2v, encoded_from_latents([latent], [entry], tmp_path / "with").items)
    bare = [[torch.ones(1, 3, 16), {}]]
    with pytest.raises(KilnError, match="1 of 2 items have none"):
        check_given(i2v, encoded_from_latents([latent] * 2, [entry, bare], tmp_path / "one").items)


@pytest.mark.parametrize("name", ["reference_latents", NOISE_MASK])
def test_what_later_items_give_is_looked_at_too(tmp_path: Path, name: str) -> None:
    plain, given = items_with(tmp_path / "plain", count=8), items_with(tmp_path / "given", name, count=8)
    check_given(Deaf(), plain)
    for items in (given + plain, plain + given):
        with pytest.raises(KilnError, match=r"8 of 16 items give .* \('given0.png', .*'given5.png', ...\)"):
            check_given(Deaf(), items)


def test_one_item_of_each_kind_is_shown_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; of the others no tensor is read."""
    items = (
        *items_with(tmp_path / "a", "reference_latents", count=20),
        *items_with(tmp_path / "b", "vace_frames", count=20),
        *items_with(tmp_path / "c", count=20),
    )
    read: list[Path] = []
    monkeypatch.setattr(checks, "load_text", lambda path: read.append(path) or load_text(path))
    check_given(ToyDenoiser(), items)
    assert len(read) == 4


def test_devices_that_were_never_tried_are_named() -> None:
    assert untried_device(torch.device("cpu")) == untried_device(torch.device("cuda", 0)) == ""
    for kind in ("mps", "xpu"):
        assert f"of the kind {kind}" in untried_device(torch.device(kind))
