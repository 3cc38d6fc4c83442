"""Images, latents and conditioning of other nodes as datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainer.dataset.batches import ItemStore, SampleDraw
from trainer.dataset.encoded import load_text
from trainer.dataset.from_graph import encoded_from_latents, images_to_dataset
from trainer.dataset.pixels import read_pixels
from trainer.errors import KilnError


def pictures(count: int, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.random((32, 48, channels), dtype=np.float32) for _ in range(count)]


def test_images_become_files_once(tmp_path: Path) -> None:
    images = pictures(3)
    dataset = images_to_dataset(images, ["a", "b", "c"], tmp_path, repeats=2)
    assert [i.caption for i in dataset.items] == ["a", "b", "c"] and dataset.items[0].repeats == 2
    kept = np.asarray(read_pixels(dataset.items[1].path), float) / 255
    assert np.abs(kept - images[1]).max() <= 0.5 / 255 + 1e-6
    assert images_to_dataset(images, ["one"], tmp_path).items[2].caption == "one"
    assert images_to_dataset(images, [], tmp_path).items[0].caption == ""
    assert len(list(tmp_path.iterdir())) == 3
    assert images_to_dataset(pictures(1, 4), [], tmp_path).items[0].use_alpha


def test_images_and_captions_must_match(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="There are 3 images and 2 captions; connect one, or one per image"):
        images_to_dataset(pictures(3), ["a", "b"], tmp_path)
    with pytest.raises(KilnError, match="Image 1 has 8x4 pixels; at least 16x16"):
        images_to_dataset([np.zeros((4, 8, 3), np.float32)], [], tmp_path)


def conditioning(count: int = 1) -> list[list[object]]:
    return [
        [torch.full((1, 3, 6), n + 1.0), {"pooled_output": torch.ones(1, 5), "start": 0.1}]
        for n in range(count)
    ]


def test_lists_and_batches_as_the_host_makes_them(tmp_path: Path) -> None:
    listed = [{"samples": torch.randn(1, 4, 1, 2, n)} for n in (2, 3)]
    encoded = encoded_from_latents(listed, [conditioning(1), conditioning(1)], tmp_path, repeats=3)
    assert [i.shape for i in encoded.items] == [(4, 1, 2, 2), (4, 1, 2, 3)]
    assert encoded.items[0].repeats == 3 and encoded.encoded_now == 3  # the two captions are one
    latent, text = encoded.items[1].load()
    assert torch.equal(latent, listed[1]["samples"][0]) and text["cross_attn"].shape == (1, 3, 6)
    assert text["pooled_output"].shape == (1, 5) and text["start"] == 0.1
    batch = {"samples": torch.randn(4, 4, 2, 2)}
    assert len(encoded_from_latents([batch], [conditioning(1)], tmp_path).items) == 4
    assert len(encoded_from_latents([batch], [conditioning(4)], tmp_path).items) == 4
    again = encoded_from_latents([batch], [conditioning(4)], tmp_path)
    assert again.encoded_now == 0


def test_inference_tensors_and_noise_masks(tmp_path: Path) -> None:
    with torch.inference_mode():
        latent = {"samples": torch.randn(2, 4, 1, 2, 2), "noise_mask": torch.zeros(1, 16, 16)}
        latent["noise_mask"][:, :, 8:] = 1
        text = conditioning(1)
    encoded = encoded_from_latents([latent], [text], tmp_path)
    batch = ItemStore(encoded.items).load([SampleDraw(0, 0, 0), SampleDraw(1, 0, 1)])
    assert not batch.latents.is_inference() and batch.mask is not None
    assert batch.mask[1, 0, 0].tolist() == [[0, 1], [0, 1]]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    latents = [{"samples": torch.randn(1, 4, 2, 2)}] * 3
    with pytest.raises(KilnError, match="There are 3 latents and 2 conditionings; connect one conditioning"):
        encoded_from_latents(latents, [conditioning(2)], tmp_path)
    with pytest.raises(KilnError, match=r"A latent of shape \(1, 4, 9\) cannot be trained on"):
        encoded_from_latents([{"samples": torch.randn(1, 4, 9)}], [conditioning()], tmp_path)


def test_addresses_of_earlier_versions_stay(tmp_path: Path) -> None:
    """They kept tensors of one row only: where that was everything, runs with these datasets can be resumed."""
    text = torch.cat([torch.arange(6.0).reshape(1, 2, 3), torch.zeros(1, 2, 3)], 1)
    latents, pooled = [{"samples": torch.ones(1, 4, 2, 2)}], torch.full((1, 5), 0.5)

    def encode(extras: dict[str, object]) -> tuple[str, dict[str, object]]:
        (item,) = encoded_from_latents(latents, [[[text, extras]]], tmp_path).items
        return item.text_path.stem, load_text(item.text_path)

    with_pooled = encode({"pooled_output": pooled})
    assert with_pooled[0][:16] == "a3269d6896dcea93", "as written by the version before"
    nothing_pooled = encode({"pooled_output": None})
    assert nothing_pooled[0][:16] == "838b41bad8339456" and nothing_pooled[1]["pooled_output"] is None
    for told in (
        {"guidance": 3.5},
        {"reference_latents": [text]},
        {"ids": torch.ones(2, 3)},
        {"extra": None},
    ):
        address, found = encode({"pooled_output": pooled, **told})
        assert address != with_pooled[0] and found.keys() == {"cross_attn", "pooled_output", *told}


def test_what_an_earlier_version_left_out_is_added(tmp_path: Path) -> None:
    text, latents = torch.ones(1, 2, 3), [{"samples": torch.ones(1, 4, 2, 2)}]
    (item,) = encoded_from_latents(latents, [[[text, {"pooled_output": None}]]], tmp_path).items
    save_file({"cross_attn": torch.ones(2, 3), "length": torch.tensor([2])}, item.text_path)
    assert "pooled_output" not in load_text(item.text_path)
    again = encoded_from_latents(latents, [[[text, {"pooled_output": None}]]], tmp_path)
    assert again.encoded_now == 1 and again.items == (item,)
    assert load_text(item.text_path)["pooled_output"] is None
    (other,) = encoded_from_latents(latents, [[[text, {}]]], tmp_path).items
    assert other.text_path != item.text_path and "pooled_output" not in load_text(other.text_path)


def test_one_caption_for_each_item(tmp_path: Path) -> None:
    latents = [{"samples": torch.zeros(3, 4, 2, 2)}]
    with pytest.raises(KilnError, match="one of those connected has 2 entries, as Conditioning Combine"):
        encoded_from_latents(latents, [conditioning(2)], tmp_path)
    with pytest.raises(KilnError, match="holds a batch of 3 texts; an item is trained on one"):
        encoded_from_latents(latents, [[[torch.zeros(3, 2, 6), {}]]], tmp_path)


def test_masks_of_clips_have_frames(tmp_path: Path) -> None:
    """A first frame that is given, as the host's Wan22ImageToVideoLatent masks it, and as a stack of masks."""
    first = torch.ones(1, 1, 3, 4, 4)
    first[:, :, 0] = 0
    for mask in (first, first[0, 0]):
        latent = {"samples": torch.randn(1, 4, 3, 2, 2), "noise_mask": mask}
        encoded = encoded_from_latents([latent], [conditioning()], tmp_path)
        batch = ItemStore(encoded.items).load([SampleDraw(0, 0, 0)])
        assert batch.mask is not None and batch.mask.shape == (1, 1, 3, 2, 2)
        assert batch.mask[0, 0, :, 0, 0].tolist() == [0, 1, 1] and encoded.items[0].noise_mask
        assert batch.items[0].noise_mask is not None
