"""Reading folders, good and hostile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.dataset.items import crop_to, fit_size, folder_state, read_pixels, scan_folder
from trainer.errors import KilnError


def picture(
    path: Path, size: tuple[int, int] = (40, 24), colour: str = "red", caption: str | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def test_images_with_captions_in_natural_order(tmp_path: Path) -> None:
    for name in ("b10.png", "b2.png", "a.jpg", "with space 'quoted' \u00e9.webp"):
        picture(tmp_path / name, caption=f"caption of {name}")
    picture(tmp_path / "deeper" / "c.png")
    (tmp_path / "notes.txt").write_text("not a caption")
    dataset = scan_folder(tmp_path, repeats=3)
    assert [i.path.name for i in dataset.items] == [
        "a.jpg",
        "b2.png",
        "b10.png",
        "with space 'quoted' \u00e9.webp",
    ]
    assert dataset.items[1].caption == "caption of b2.png" and dataset.items[1].repeats == 3
    assert (dataset.items[0].width, dataset.items[0].height) == (40, 24)
    assert len(scan_folder(tmp_path, recursive=True).items) == 5
    assert dataset.describe().startswith("4 images, 4 with captions\n40x24 to 40x24 pixels")


def test_byte_order_mark_and_missing_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    picture(tmp_path / "b.png")
    assert [i.caption for i in scan_folder(tmp_path).items] == ["hello", ""]


def test_missing_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="nowhere does not exist; put your images"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(KilnError, match="it holds no image"):
        scan_folder(tmp_path)


def hostile(folder: Path) -> None:
    picture(folder / "good.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("this is not an image")
    picture(folder / "whole.jpg", (400, 400))
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:900])
    (folder / "whole.jpg").unlink()
    picture(folder / "latin.png")
    (folder / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))


def test_bad_files_are_named_with_the_reason(tmp_path: Path) -> None:
    hostile(tmp_path)
    with pytest.raises(
        KilnError, match=r"The image .*cut\.jpg cannot be read \(.*truncated.*replace or remove it"
    ):
        scan_folder(tmp_path)
    dataset = scan_folder(tmp_path, on_bad_file="skip")
    assert [i.path.name for i in dataset.items] == ["good.png"]
    reasons = "\n".join(dataset.skipped)
    for name in (
        "empty.png",
        "text.png",
        "cut.jpg",
        "latin.txt is not UTF-8 text (byte 3); save it as UTF-8",
    ):
        assert name in reasons
    assert reasons in dataset.describe().replace("skipped: ", "")


def test_only_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(KilnError, match="none of its 1 images can be read"):
        scan_folder(tmp_path, on_bad_file="skip")


def test_pixels_are_upright_rgb_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (40, 24), "blue").save(tmp_path / "turned.jpg", exif=exif)
    assert read_pixels(tmp_path / "turned.jpg").size == (24, 40)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_pixels(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (4, 4)).save(tmp_path / "print.jpg")
    assert read_pixels(tmp_path / "print.jpg").mode == "RGB"


def test_folder_state_follows_files(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="one")
    before = folder_state(tmp_path, False)
    assert folder_state(tmp_path, False) == before
    (tmp_path / "a.txt").write_text("another")
    assert folder_state(tmp_path, False) != before


def test_fit_size_by_hand() -> None:
    assert fit_size(64, 64, 512) == (64, 64)  # never enlarged
    assert fit_size(1024, 1024, 512) == (512, 512)
    assert fit_size(2000, 1000, 512) == (720, 368)  # 724 x 362
    assert fit_size(100, 70, 512) == (96, 64)


@given(st.integers(16, 9000), st.integers(16, 9000), st.integers(16, 1024))
def test_fit_size_keeps_its_promises(width: int, height: int, resolution: int) -> None:
    w, h = fit_size(width, height, resolution)
    assert w % 16 == 0 and h % 16 == 0 and w >= 16 and h >= 16
    assert w <= width and h <= height
    if min(w, h) > 64:
        assert w * h <= resolution**2 * 1.3
        assert abs(w / h / (width / height) - 1) < 0.3


def test_crop_takes_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    cut = crop_to(Image.fromarray(pixels), (16, 16))
    assert cut.shape == (16, 16, 3) and cut.dtype == np.float32 and cut.min() > 0.9
