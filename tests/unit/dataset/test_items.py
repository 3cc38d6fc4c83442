"""Reading folders: what is found, what is said of it, and what is refused with a reason."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media import HOSTILE, clip, hostile_folder, moving_gif, picture, scene
from trainer.dataset import scan
from trainer.dataset.browse import Contents, Part
from trainer.dataset.files import folder_state
from trainer.dataset.items import Dataset
from trainer.dataset.loading import crop_to, read_thumbnail
from trainer.dataset.pixels import open_still, read_mask, read_pixels
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.dataset.video import read_frames, read_times
from trainer.errors import KilnError


def names(dataset: Dataset) -> list[str]:
    return [i.path.name for i in dataset.items]


def skipping(folder: Path) -> Dataset:
    return scan_folder(folder, ScanOptions(on_bad_file="skip", recursive=True))


def test_images_with_captions_in_natural_order(tmp_path: Path) -> None:
    for name in ("b10.png", "b2.png", "a.jpg", "with space 'quoted' \u00e9.webp"):
        picture(tmp_path / name, caption=f"caption of {name}")
    picture(tmp_path / "deeper" / "c.png")
    (tmp_path / "notes.txt").write_text("not a caption")
    dataset = scan_folder(tmp_path, ScanOptions(repeats=3))
    assert names(dataset) == ["a.jpg", "b2.png", "b10.png", "with space 'quoted' \u00e9.webp"]
    assert dataset.items[1].caption == "caption of b2.png" and dataset.items[1].repeats == 3
    assert (dataset.items[0].facts.width, dataset.items[0].facts.height) == (40, 24)
    assert len(scan_folder(tmp_path, ScanOptions(recursive=True)).items) == 5
    assert dataset.describe().startswith("4 images, 4 with captions\n40x24 to 40x24 pixels")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "gif", "avif", "tiff", "tif"])
def test_every_kind_of_still(tmp_path: Path, ending: str) -> None:
    scene(1, (96, 64)).save(tmp_path / f"a.{ending}")
    (item,) = scan_folder(tmp_path).items
    assert (item.facts.width, item.facts.height, item.facts.frames) == (96, 64, 1)
    assert (
        np.abs(np.asarray(read_pixels(item.path), float) - np.asarray(scene(1, (96, 64)), float)).mean() < 30
    )


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mpeg4"), ("a.mov", "mpeg4"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx-vp9")]
)
def test_every_kind_of_clip(tmp_path: Path, name: str, codec: str) -> None:
    clip(tmp_path / name, frames=20, codec=codec)
    (item,) = scan_folder(tmp_path).items
    assert (item.facts.width, item.facts.height, item.facts.frames) == (64, 48, 20)
    assert item.facts.fps == pytest.approx(16) and item.facts.seconds == pytest.approx(1.25)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.apng", "a.webp", "a.avif"])
def test_a_moving_picture_is_a_clip(tmp_path: Path, name: str) -> None:
    moving_gif(tmp_path / name)
    assert [listed.clip for listed in Contents(tmp_path, Part()).items()] == [True], (
        "the page and the node agree"
    )
    (item,) = scan_folder(tmp_path).items
    assert item.facts.frames == 9 and item.facts.fps > 10
    assert "0 images and 1 clips" in scan_folder(tmp_path).describe()
    assert read_thumbnail(item.path, 1, 32).size == (32, 24), "the page does not know yet that it moves"
    ((red, green, blue),) = read_frames(item.path, [8], lambda frame: frame.getpixel((5, 5)))
    assert abs(red - 160) < 12 and green < 12 and blue < 12, "webp and avif lose a little"


@pytest.mark.parametrize("name", ["a.webp", "a.avif"])
def test_a_moving_image_plays_at_its_own_speed(tmp_path: Path, name: str) -> None:
    """Its frames stand for times of their own; still ones of the same kind stay stills."""
    shades = [Image.new("RGB", (64, 48), (shade, 0, 0)) for shade in (0, 100, 200)]
    shades[0].save(tmp_path / name, save_all=True, append_images=shades[1:], duration=[100, 300, 100])
    picture(tmp_path / f"still{Path(name).suffix}")
    moving, still = scan_folder(tmp_path).items
    assert (moving.facts.frames, moving.facts.fps, still.facts.frames) == (3, pytest.approx(5), 1)
    reds = read_times(moving.path, [0.0, 0.1, 0.35, 0.45, 9.0], lambda frame: frame.getpixel((5, 5))[0])
    assert reds == pytest.approx([0, 100, 100, 200, 200], abs=12)


def test_a_broken_moving_webp_is_named(tmp_path: Path) -> None:
    moving_gif(tmp_path / "a.webp")
    whole = (tmp_path / "a.webp").read_bytes()
    picture(tmp_path / "b.webp")
    for length in (21, 40, len(whole) // 2):
        (tmp_path / "a.webp").write_bytes(whole[:length])
        dataset = scan_folder(tmp_path, ScanOptions(on_bad_file="skip"))
        assert [item.path.name for item in dataset.items] == ["b.webp"] and "a.webp" in dataset.skipped[0]


def test_a_file_of_pages_is_named(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (64, 48))] * 3
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    picture(tmp_path / "b.webp")
    dataset = scan_folder(tmp_path, ScanOptions(on_bad_file="skip"))
    assert len(dataset.items) == 1 and "holds 3 pictures; save an animation as mp4, gif" in dataset.skipped[0]


def test_captions_fields_and_who_wins(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffrom txt")
    (tmp_path / "a.json").write_text(
        json.dumps({"caption": "from json", "light": "soft", "tags": ["x", "y"]})
    )
    (tmp_path / "b.json").write_text('"only a string"')
    rows = [
        {"file_name": "a.png", "text": "from table", "light": "hard", "mood": "calm"},
        {"file_name": "c.png", "text": "of c", "number": 3, "none": None},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    a, b, c, d = scan_folder(tmp_path).items
    assert a.caption == "from txt" and dict(a.fields) == {"light": "soft", "mood": "calm", "tags": "x, y"}
    assert b.caption == "only a string" and c.caption == "of c" and d.caption == ""
    assert dict(c.fields) == {"number": "3", "none": ""}


def test_csv_table_of_a_parent_folder(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.png")
    (tmp_path / "metadata.csv").write_text('file_name,text,style\ntrain/a.png,"a cat, asleep",oil\n')
    (item,) = scan_folder(tmp_path, ScanOptions(recursive=True)).items
    assert item.caption == "a cat, asleep" and dict(item.fields) == {"style": "oil"}


def test_a_table_that_names_missing_files_is_noticed(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\ngone.png,two\n")
    with pytest.raises(KilnError, match=r"names 1 files that are not there \(gone.png"):
        scan_folder(tmp_path)


def test_a_broken_table_costs_no_image(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="fine")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{broken')
    with pytest.raises(KilnError, match=r"Line 2 of .*metadata.jsonl is not JSON"):
        scan_folder(tmp_path)
    dataset = skipping(tmp_path)
    assert dataset.items[0].caption == "fine" and len(dataset.skipped) == 1


def test_an_exported_workflow_is_no_source_of_fields(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"nodes": [{"id": 1}], "extra": {}, "light": "soft"}))
    assert dict(scan_folder(tmp_path).items[0].fields) == {"light": "soft"}


def test_folders_with_a_number_are_repeats(tmp_path: Path) -> None:
    picture(tmp_path / "10_zorb" / "a.png")
    picture(tmp_path / "3_other" / "deep" / "b.png")
    picture(tmp_path / "c.png")
    items = scan_folder(tmp_path, ScanOptions(recursive=True, repeats=2)).items
    assert {(i.path.name, i.repeats, i.folder) for i in items} == {
        ("a.png", 20, "zorb"),
        ("b.png", 6, "deep"),
        ("c.png", 2, tmp_path.name),
    }
    assert scan_folder(tmp_path / "10_zorb").items[0].repeats == 10


def test_masks_from_alpha_and_from_a_folder(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 16, 32))
    clear.save(tmp_path / "alpha.png")
    Image.new("RGBA", (32, 32), (255, 0, 0, 255)).save(tmp_path / "opaque.png")
    picture(tmp_path / "file.png", (32, 32))
    picture(tmp_path / "masks" / "file.png", (32, 32), "white")
    alpha, file, opaque = scan_folder(tmp_path).items
    assert alpha.use_alpha and alpha.mask is None and file.mask and not file.use_alpha and not opaque.masked
    assert not any(i.masked for i in scan_folder(tmp_path, ScanOptions(masks=False)).items)
    assert read_mask(tmp_path / "alpha.png").getpixel((0, 0)) == 0
    (tmp_path / "masks" / "file.png").write_text("broken")
    with pytest.raises(KilnError, match=r"masks/file.png cannot be read"):
        scan_folder(tmp_path)


def test_missing_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="nowhere does not exist; put your images"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(KilnError, match="it holds no image"):
        scan_folder(tmp_path)
    picture(tmp_path / "10_zorb" / "a.png")
    with pytest.raises(KilnError, match="to read its sub-folders switch recursive on"):
        scan_folder(tmp_path)


def test_a_hostile_folder_names_every_bad_file(tmp_path: Path) -> None:
    good = hostile_folder(tmp_path / "set")
    dataset = skipping(tmp_path / "set")
    assert sorted(names(dataset)) == sorted(good)
    for name, reason in HOSTILE.items():
        found = [s for s in dataset.skipped if f"/{name} " in s]
        assert len(found) == 1 and re.search(reason, found[0], re.IGNORECASE), (name, dataset.skipped)
    assert len(dataset.skipped) == len(HOSTILE)
    with pytest.raises(KilnError):
        scan_folder(tmp_path / "set", ScanOptions(on_bad_file="stop"))


def test_names_that_are_not_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    picture(path)
    dataset = scan_folder(tmp_path, facts_cache=tmp_path / "kept")
    assert len(dataset.items) == 1 and folder_state(tmp_path, False)
    path.write_text("broken")
    with pytest.raises(KilnError, match=r"caf\?.png cannot be read") as caught:
        scan_folder(tmp_path)
    str(caught.value).encode()


def test_only_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(
        KilnError, match=r"none of its 2 images can be read. The image .*empty.png cannot be"
    ) as caught:
        skipping(tmp_path)
    assert "Further files that cannot be used (1): text.png" in str(caught.value)


def test_pixels_are_upright_rgb_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (40, 24), "blue").save(tmp_path / "turned.jpg", exif=exif)
    assert read_pixels(tmp_path / "turned.jpg").size == (24, 40)
    assert open_still(tmp_path / "turned.jpg", at_least=16)[1] == (24, 40)
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_pixels(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (16, 16)).save(tmp_path / "print.jpg")
    assert read_pixels(tmp_path / "print.jpg").mode == "RGB"


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    grey = np.full((16, 16), 32768, np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    Image.fromarray(grey).save(tmp_path / "deep.tiff")
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "float.tiff")
    for name in ("deep.png", "deep.tiff", "float.tiff"):
        assert read_pixels(tmp_path / name).getpixel((8, 8)) == pytest.approx((128, 128, 128), abs=1), name


def test_jpegs_are_looked_at_small_and_reported_large(tmp_path: Path) -> None:
    scene(1, (2400, 1600)).save(tmp_path / "large.jpg")
    image, size = open_still(tmp_path / "large.jpg", at_least=400)
    assert size == (2400, 1600) and 400 <= image.height < 1600


def test_unchanged_files_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    real = scan.measure_file
    monkeypatch.setattr(scan, "measure_file", lambda path: (looked.append(path.name), real(path))[1])
    folder, kept = tmp_path / "set", tmp_path / "kept"
    for name in "abc":
        picture(folder / f"{name}.png")
    first = scan_folder(folder, facts_cache=kept)
    assert len(looked) == 3
    assert scan_folder(folder, facts_cache=kept).items == first.items and len(looked) == 3
    picture(folder / "b.png", (48, 32), "blue")
    assert scan_folder(folder, facts_cache=kept).items[1].facts.width == 48 and looked[3:] == ["b.png"]
    (file,) = kept.iterdir()
    file.write_text("damaged")
    assert scan_folder(folder, facts_cache=kept).items[0] == first.items[0] and len(looked) == 7


def test_folder_state_follows_files(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="one")
    states = [folder_state(tmp_path, False)]
    assert folder_state(tmp_path, False) == states[0]
    for name in ("a.txt", "metadata.csv", "a.json", "b.png"):
        (tmp_path / name).write_text("another")
        states.append(folder_state(tmp_path, False))
    picture(tmp_path / "masks" / "a.png")
    states.append(folder_state(tmp_path, False))
    assert len(set(states)) == 6


@pytest.mark.parametrize("named_in", ["metadata.csv", "a.json"])
@pytest.mark.parametrize("place", ["", "before", "set_aside", "masks/deep"])
def test_folder_state_follows_what_a_column_names(tmp_path: Path, named_in: str, place: str) -> None:
    picture(tmp_path / "a.png", caption="one")
    control = tmp_path / place / "c.png"
    picture(control)
    name = control.relative_to(tmp_path).as_posix()
    table = f"file_name,control_path\na.png,{name}\n"
    (tmp_path / named_in).write_text(
        table if named_in.endswith("csv") else json.dumps({"control_path": name})
    )
    (item,) = [i for i in scan_folder(tmp_path).items if i.path.name == "a.png"]
    assert [c.path for c in item.controls] == [control], "it is read"
    before = folder_state(tmp_path, False)
    assert folder_state(tmp_path, False) == before
    picture(control, (48, 48), "blue")
    assert folder_state(tmp_path, False) != before


@pytest.mark.parametrize("seed", range(20))
def test_folder_state_follows_whatever_a_scan_tells(tmp_path: Path, seed: int) -> None:
    """Whenever another change makes another dataset of a folder, its state is another one too."""
    draw = random.Random(seed)
    folders = ("", "sub", "10_x", "masks", "set_aside", "@eaDir", "sub/masks")
    names = ("a.png", "b.png", "a.txt", "a.json", "metadata.csv", "b-masklabel.png", "c.md", "b_control.png")
    picture(tmp_path / "a.png")
    recursive = draw.random() < 0.5

    def told() -> object:
        try:
            options = ScanOptions(on_bad_file="skip", recursive=recursive, control_folders=controls)
            return scan_folder(tmp_path, options)
        except KilnError as error:
            return str(error)

    controls = (tmp_path,) if draw.random() < 0.3 else ()
    before, state = told(), folder_state(tmp_path, recursive)
    for _ in range(12):
        file = tmp_path / draw.choice(folders) / draw.choice(names)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and draw.random() < 0.5:
            file.unlink()
        elif file.suffix == ".png":
            picture(file, (draw.randint(16, 90), 40))
        else:
            file.write_text(
                draw.choice(
                    ("", '{"light": "soft"}', "file_name,text\na.png,x\n", "word " * draw.randint(1, 9))
                )
            )
        after, new = told(), folder_state(tmp_path, recursive)
        assert new != state or after == before, file
        before, state = after, new


def test_crop_takes_the_middle() -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    cut = np.asarray(crop_to(Image.fromarray(pixels), (16, 16)))
    assert cut.shape == (16, 16, 3) and cut.min() > 230
