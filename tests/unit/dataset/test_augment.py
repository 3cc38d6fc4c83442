"""What augmentation promises, measured over many draws with fixed seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.media import clip, writing
from trainer.dataset.augment import Augmentation, augment
from trainer.dataset.buckets import Bucket
from trainer.dataset.facts import Facts
from trainer.dataset.flip import flip_warnings
from trainer.dataset.items import Item
from trainer.dataset.loading import load_pixels
from trainer.dataset.scan import scan_folder
from trainer.errors import KilnError

OFF = {"crop_min_scale": 1.0, "horizontal_flip": 0.0, "color_jitter": 0.0, "noise_max": 0.0, "noise_min": 0.0}
DRAWS = 300
# Red tells the column, green the row: what is left of them after a crop tells the crop.
RAMP = np.zeros((160, 240, 3), np.uint8)
RAMP[..., 0] = np.linspace(0, 239, 240)[None]
RAMP[..., 1] = np.linspace(0, 159, 160)[:, None]
SIZE = (120, 80)


def draw(number: int, frames: np.ndarray = RAMP[None], mask: torch.Tensor | None = None, **settings: float):  # type: ignore[no-untyped-def]
    chosen = Augmentation(**{**OFF, **settings})  # type: ignore[arg-type]
    return augment(torch.from_numpy(frames), mask, SIZE, chosen, (number,))


def test_nothing_switched_on_only_resizes() -> None:
    frames, mask = draw(0)
    assert frames.shape == (1, 80, 120, 3) and frames.dtype == torch.float32 and mask is None
    exact = np.asarray(Image.fromarray(RAMP).resize(SIZE, Image.Resampling.BICUBIC), np.float32) / 255
    assert np.abs(frames[0].numpy() - exact).max() < 0.01


def test_crops_keep_80_to_100_percent_everywhere_and_their_shape() -> None:
    shares, lefts = [], []
    for number in range(DRAWS):
        picture = draw(number, crop_min_scale=0.8)[0][0].numpy() * 255
        # The ramp's slope over the 120 columns of the result tells the crop's width
        width, height = np.ptp(picture[..., 0]) * 120 / 119, np.ptp(picture[..., 1]) * 80 / 79
        assert width / height == pytest.approx(1.5, rel=0.05)
        shares.append(width * height / (240 * 160))
        if width < 225:  # there is room to lie somewhere
            lefts.append(picture[..., 0].min() / (240 - width))
    assert min(shares) > 0.78 and max(shares) < 1.02
    assert np.mean(shares) == pytest.approx(0.9, abs=0.02), "uniform over the range"
    assert min(shares) < 0.83 and max(shares) > 0.97
    assert np.mean(lefts) == pytest.approx(0.5, abs=0.08), "anywhere in the picture"


def test_half_of_the_pictures_are_mirrored() -> None:
    mirrored = 0
    for number in range(DRAWS):
        row = draw(number, horizontal_flip=0.5)[0][0, 0, :, 0]
        mirrored += bool(row[0] > row[-1])
    assert 120 < mirrored < 180
    assert all(draw(n, horizontal_flip=1.0)[0][0, 0, 0, 0] > 0.9 for n in range(5))


def test_colours_change_by_up_to_a_fifth() -> None:
    grey = np.full((1, 80, 120, 3), 100, np.uint8)
    brightness = [float(draw(n, grey, color_jitter=0.2)[0].mean()) * 255 / 100 for n in range(DRAWS)]
    assert 0.79 < min(brightness) < 0.83 and 1.17 < max(brightness) < 1.21
    assert np.mean(brightness) == pytest.approx(1.0, abs=0.02)
    colour = np.full((1, 80, 120, 3), (150, 100, 50), np.uint8)
    spreads = [float(np.ptp(draw(n, colour, color_jitter=0.2)[0][0, 0, 0].numpy())) for n in range(DRAWS)]
    ratio = np.array(spreads) / (100 / 255)  # brightness, contrast and saturation multiply it
    assert 0.8**3 - 0.02 < ratio.min() < 0.75 and 1.3 < ratio.max() < 1.2**3 + 0.02


def test_noise_has_a_variance_of_10_to_50() -> None:
    grey = np.full((1, 80, 120, 3), 128, np.uint8)
    variances = [float(draw(n, grey, noise_min=10, noise_max=50)[0].var()) * 255**2 for n in range(DRAWS)]
    assert 9 < min(variances) < 13 and 47 < max(variances) < 52
    assert np.mean(variances) == pytest.approx(30, abs=2)


def test_masks_follow_the_geometry() -> None:
    right_half = torch.zeros(160, 240)
    right_half[:, 120:] = 1
    for number in range(20):
        frames, mask = draw(number, mask=right_half, crop_min_scale=0.5, horizontal_flip=0.5)
        assert mask is not None and mask.shape == (80, 120)
        agree = (frames[0, ..., 0] * 255 > 119.5).float() == mask
        assert agree.float().mean() > 0.97


def test_frames_of_a_clip_are_changed_alike() -> None:
    still = np.repeat(RAMP[None], 5, axis=0)
    for number in range(10):
        frames = draw(number, still, crop_min_scale=0.5, horizontal_flip=0.5, color_jitter=0.2)[0]
        assert all(torch.equal(frames[0], frame) for frame in frames)


def test_a_variant_is_a_function_of_seed_and_number() -> None:
    settings = {"crop_min_scale": 0.8, "noise_max": 50.0}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = draw(7, **settings)[0]
    assert torch.equal(torch.random.get_rng_state(), before), "others' draws are left alone"
    torch.manual_seed(2)
    assert torch.equal(draw(7, **settings)[0], first)
    assert not torch.equal(draw(8, **settings)[0], first)
    assert not torch.equal(draw(7, seed=1, **settings)[0], first)


def test_crops_are_read_with_room_so_that_they_need_no_enlarging(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (item,) = scan_folder(tmp_path).items
    plain = load_pixels(item, Bucket(1, 128, 128), 16).frames
    cropped = Item(item.path, item.facts, augmentation=Augmentation(**{**OFF, "crop_min_scale": 0.25}))  # type: ignore[arg-type]
    sharp = [np.diff(load_pixels(cropped, Bucket(1, 128, 128), 16, n).frames, axis=2).std() for n in range(4)]
    assert min(sharp) > 0.8 * np.diff(plain, axis=2).std()


def test_clips_and_stills_come_in_their_bucket(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", frames=30, size=(96, 64))
    (item,) = scan_folder(tmp_path).with_augmentation(Augmentation()).items
    pixels = load_pixels(item, Bucket(5, 32, 48), 16.0, 1)
    assert pixels.frames.shape == (5, 32, 48, 3) and pixels.frames.max() <= 1


def test_ranges() -> None:
    with pytest.raises(KilnError, match=r"crop_min_scale is 0.0; it must lie between 0.1 and 1"):
        Augmentation(crop_min_scale=0.0)
    with pytest.raises(KilnError, match="swap them"):
        Augmentation(noise_min=60.0)


def test_where_a_flip_would_harm(tmp_path: Path) -> None:
    writing().save(tmp_path / "sign.png")
    Image.fromarray(RAMP).save(tmp_path / "ramp.png")
    ramp, sign = scan_folder(tmp_path).items
    assert flip_warnings([ramp]) == []
    assert flip_warnings([ramp, sign]) == [
        "Flip would mirror writing in 1 items: sign.png. Set horizontal_flip to 0."
    ]
    plain = Facts(width=64, height=64)
    said = [Item(Path("a.png"), plain, c) for c in ("she looks to the left", "alright", "\u5de6\u4fa7")]
    assert flip_warnings(said)[0].startswith("Flip would make 2 captions wrong that say left or right: a.png")
