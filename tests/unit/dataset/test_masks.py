"""Masks are found wherever people put them, and one that keeps nothing is said before anything is trained."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.media import clip, picture, scene
from trainer.dataset.buckets import BucketOptions
from trainer.dataset.encode import encode_dataset
from trainer.dataset.encoded import EncodedDataset
from trainer.dataset.from_graph import encoded_from_latents
from trainer.dataset.items import Dataset
from trainer.dataset.mask_painting import mask_from_painting, paintable, save_painting
from trainer.dataset.quality import find_problems
from trainer.dataset.report import DatasetReport
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.errors import KilnError

from ..toy import TEXT, ToyEncoder

SIZE = (64, 64)


def grey(path: Path, level: int, part: tuple[int, int, int, int] | None = None) -> None:
    """A mask of one level, or of white in a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", SIZE, level)
    if part:
        image.paste(255, part)
    image.save(path)


def test_masks_in_folders_like_those_of_the_images(tmp_path: Path) -> None:
    for name in ("a", "sub/b", "sub/deep/c", "sub/d"):
        picture(tmp_path / f"{name}.png", SIZE, caption=name)
        grey(tmp_path / "masks" / f"{name}.png", 255)
    grey(tmp_path / "sub" / "masks" / "d.png", 255)
    grey(tmp_path / "masks" / "other" / "a.png", 255)
    dataset = scan_folder(tmp_path, ScanOptions(recursive=True))
    used = {i.path.stem: i.mask.relative_to(tmp_path).as_posix() for i in dataset.items if i.mask}
    assert used == {
        "a": "masks/a.png",
        "b": "masks/sub/b.png",
        "c": "masks/sub/deep/c.png",
        "d": "sub/masks/d.png",
    }, "the nearest counts"
    (orphans,) = [r for r in dataset.remarks if "masks are not used" in r]
    assert "2 masks" in orphans and "a.png" in orphans and "d.png" in orphans


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (640, 640)])
def test_a_mask_is_scaled_to_its_image(tmp_path: Path, size: tuple[int, int]) -> None:
    picture(tmp_path / "a.png", SIZE, caption="one")
    (tmp_path / "masks").mkdir()
    Image.new("L", size, 255).save(tmp_path / "masks" / "a.png")
    dataset = scan_folder(tmp_path)
    assert dataset.items[0].kept == 1 and not dataset.items[0].mask_is_stretched
    assert encode(dataset, tmp_path).items[0]


def encode(dataset: Dataset, tmp_path: Path) -> EncodedDataset:
    return encode_dataset(dataset, ToyEncoder(), tmp_path / "kept", BucketOptions(resolution=64))


@pytest.mark.parametrize(
    "place",
    [
        "masks/a.png",
        "mask/a.png",
        "Masks/A.PNG",
        "masks/a.webp",
        "masks/a.png.png",
        "a-masklabel.png",
        "A-MaskLabel.PNG",
    ],
)
def test_a_mask_is_found_where_it_is_put(tmp_path: Path, place: str) -> None:
    picture(folder := tmp_path / "set" / "a.png", SIZE, caption="one")
    grey(folder.parent / place, 0, (32, 0, 64, 64))
    dataset = scan_folder(folder.parent)
    (item,) = dataset.items
    assert item.mask == folder.parent / place and item.kept == pytest.approx(0.5) and not dataset.remarks
    assert "1 with a mask: 1 from files" in dataset.describe()
    unmasked = scan_folder(folder.parent, ScanOptions(masks=False))
    assert len(unmasked.items) == 1 and not unmasked.items[0].masked, "a label is never trained on"
    assert not unmasked.remarks


def test_sources_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", SIZE, caption="one")
    grey(tmp_path / "a-masklabel.png", 200)
    clear = Image.new("RGBA", SIZE, (9, 9, 9, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 16, 64))
    clear.save(tmp_path / "b.png")
    picture(tmp_path / "a-condlabel.png", SIZE)
    grey(tmp_path / "masks" / "gone.png", 255)
    dataset = scan_folder(tmp_path)
    assert [i.path.name for i in dataset.items] == ["a.png", "b.png"]
    assert dataset.items[1].kept == pytest.approx(0.75)
    assert "2 with a mask: 1 from files, 1 from transparency" in dataset.describe()
    orphans, conditions = dataset.remarks
    assert orphans == "1 masks are not used: gone.png; name each like its image, and give an image one."
    assert conditions == "1 pictures to condition on are not used: a-condlabel.png."
    text = DatasetReport(dataset, BucketOptions()).markdown()
    assert "| with a mask file | 1 of 2 |" in text and "| with transparency as the mask | 1 of 2 |" in text
    assert "gone.png" in text.split("## Remarks")[1]


def test_of_several_masks_the_nearest_name_counts_and_the_others_are_named(tmp_path: Path) -> None:
    for name in ("a", "A"):
        picture(tmp_path / f"{name}.png", SIZE, caption=name)
        grey(tmp_path / "masks" / f"{name}.png", 255)
    grey(tmp_path / "a-masklabel.png", 255)
    grey(tmp_path / "masks" / "a.webp", 255)
    clip(tmp_path / "masks" / "a.mp4")
    (tmp_path / "masks" / "Thumbs.db").touch()
    dataset = scan_folder(tmp_path)
    assert {i.path.name: i.mask.relative_to(tmp_path).as_posix() for i in dataset.items if i.mask} == {
        "a.png": "masks/a.png",
        "A.png": "masks/A.png",
    }
    assert dataset.remarks[0].startswith("2 masks are not used: a-masklabel.png, a.webp;")
    assert [p.name for p in dataset.unread] == ["a.mp4"]


def test_a_mask_that_keeps_nothing_is_said_at_load(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png", SIZE, caption=name)
        grey(tmp_path / "masks" / f"{name}.png", 0)
    with pytest.raises(KilnError, match=r"The masks keep nothing of all 2 items \(a.png, b.png\)"):
        scan_folder(tmp_path)
    grey(tmp_path / "masks" / "b.png", 1)
    dataset = scan_folder(tmp_path)
    assert dataset.remarks[0].startswith(
        "The masks of 1 items keep nothing, so nothing is learned from them: a.png;"
    )
    found = DatasetReport(dataset, BucketOptions()).problems
    assert [(p.item, p.severe) for p in found if p.kind == "empty mask"] == [(0, True)]
    assert len(scan_folder(tmp_path, ScanOptions(masks=False)).items) == 2


def test_wholly_transparent_images_are_said_at_load(tmp_path: Path) -> None:
    Image.new("RGBA", SIZE, (200, 30, 30, 0)).save(tmp_path / "a.png")
    with pytest.raises(KilnError, match=r"The masks keep nothing of all 1 items \(a.png\)"):
        scan_folder(tmp_path)
    assert not scan_folder(tmp_path, ScanOptions(masks=False)).items[0].masked


def test_a_mask_that_cropping_empties_is_said_when_it_is_encoded(tmp_path: Path) -> None:
    """White only at the left edge of a wide picture, which its bucket cuts off."""
    for name in "ab":
        picture(folder := tmp_path / "set" / f"{name}.png", (400, 64), caption=name)
        wide = Image.new("L", (400, 64), 0)
        wide.paste(255, (0, 0, 40, 64))
        (folder.parent / "masks").mkdir(exist_ok=True)
        wide.save(folder.parent / "masks" / f"{name}.png")
    with pytest.raises(KilnError, match=r"keep nothing of all 2 items after cropping \(a.png, b.png\)"):
        encode(scan_folder(folder.parent), tmp_path)
    Image.new("L", (400, 64), 255).save(folder.parent / "masks" / "b.png")
    encoded = encode(scan_folder(folder.parent), tmp_path)
    assert (
        "note: The masks of 1 items keep nothing" in encoded.describe() and ": a.png;" in encoded.remarks[0]
    )


def test_a_masked_clip_counts_too(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    grey(tmp_path / "a-masklabel.png", 0)
    with pytest.raises(KilnError, match="keep nothing of all 1 items"):
        scan_folder(tmp_path)


def test_noise_masks_of_the_graph_that_keep_nothing_are_refused(tmp_path: Path) -> None:
    latent = {"samples": torch.ones(2, 4, 8, 8), "noise_mask": torch.zeros(1, 64, 64)}
    text = [[torch.ones(1, 3, TEXT), {}]]
    with pytest.raises(KilnError, match="noise masks keep nothing of all 2 latents"):
        encoded_from_latents([latent], [text], tmp_path)
    latent["noise_mask"] = torch.stack([torch.zeros(64, 64), torch.ones(64, 64)])
    assert len(encoded_from_latents([latent], [text], tmp_path).items) == 2


def test_masks_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(folder := tmp_path / "set" / "a.png", SIZE, caption="one")
    grey(folder.parent / "masks" / "a.png", 255)
    first = scan_folder(folder.parent, facts_cache=tmp_path / "kept")
    monkeypatch.setattr("trainer.dataset.scan.measure_mask", None)
    assert scan_folder(folder.parent, facts_cache=tmp_path / "kept") == first


def test_what_is_painted_is_what_counts(tmp_path: Path) -> None:
    """The editor shows a mask as transparency; what it gives back is the same mask."""
    picture(tmp_path / "a.png", (60, 40), "red")
    mask = Image.new("L", (120, 80), 0)
    mask.paste(255, (0, 0, 60, 80))
    mask.save(tmp_path / "mask.png")
    shown = paintable(tmp_path / "a.png", tmp_path / "mask.png")
    assert shown.mode == "RGBA" and shown.size == (60, 40)
    assert shown.getpixel((5, 5)) == (255, 0, 0, 0), "the colour stays under what is painted"
    assert shown.getpixel((55, 5)) == (255, 0, 0, 255)
    assert paintable(tmp_path / "a.png", None).getextrema()[3] == (255, 255)
    clip(tmp_path / "c.mp4", size=(64, 48))
    assert paintable(tmp_path / "c.mp4", None).size == (64, 48)
    scene(1, (3000, 1000)).save(tmp_path / "wide.jpg")
    assert paintable(tmp_path / "wide.jpg", None).size == (2048, 683)
    save_painting(tmp_path / "a.png", tmp_path / "mask.png", tmp_path / "new" / "sheet.png")
    back = Image.open(io.BytesIO(mask_from_painting((tmp_path / "new" / "sheet.png").read_bytes())))
    assert (back.size, back.getpixel((5, 5)), back.getpixel((55, 5))) == ((60, 40), 255, 0)
    with pytest.raises(KilnError, match="Nothing is painted"):
        mask_from_painting((tmp_path / "a.png").read_bytes())


def test_a_mask_of_another_shape_is_said(tmp_path: Path) -> None:
    for name, size in (("a", (48, 96)), ("b", (32, 24)), ("c", (65, 48))):
        picture(tmp_path / f"{name}.png", (64, 48))
        picture(tmp_path / "masks" / f"{name}.png", size, "white")
    dataset = scan_folder(tmp_path, facts_cache=tmp_path / "cache")
    again = scan_folder(tmp_path, facts_cache=tmp_path / "cache")
    for each in (dataset, again):
        found = [(p.item, p.text) for p in find_problems(each) if p.kind == "stretched mask"]
        assert found == [(0, "its mask has another shape, 48x96 pixels instead of 64x48, and is stretched")]
    assert "another shape" in DatasetReport(dataset, BucketOptions(resolution=64)).markdown()
