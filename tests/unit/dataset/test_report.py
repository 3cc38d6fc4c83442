"""The report finds what is wrong, and only that; the sheet shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.media import hostile_folder, mixed_quality, scene, writing
from tests.tiny_wan.world import concept_scenes
from trainer.dataset.augment import Augmentation
from trainer.dataset.buckets import BucketOptions
from trainer.dataset.contact_sheet import SIDE, contact_sheet, variants_sheet
from trainer.dataset.facts import (
    SHARP,
    Facts,
    _has_sharp_edges,
    _percentile,
    looks_like_text,
    measure,
    perceptual_hash,
    sharp_scale,
)
from trainer.dataset.items import Dataset, Item
from trainer.dataset.quality import (
    find_problems,
    fused_words,
    near_duplicates,
    require_captions,
    tag_counts,
)
from trainer.dataset.report import DatasetReport
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.errors import KilnError

OPTIONS = BucketOptions(resolution=512)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("mixed")
    mixed_quality(folder)
    dataset = scan_folder(folder)
    return dataset.with_captions([i.caption for i in dataset.items], "zork")


def test_every_problem_is_found_and_no_other(mixed: Dataset) -> None:
    found: dict[str, set[str]] = {}
    for problem in find_problems(mixed):
        found.setdefault(mixed.items[problem.item].path.name, set()).add(problem.kind.split()[0])
    assert found == {
        "good1.png": {"caption"},  # echo.png comes first and says the same
        "good3.png": {"like"},  # copy.jpg comes first and looks the same
        "blurred.png": {"blurred"},
        "enlarged.png": {"upscaled"},
        "tiny.png": {"tiny"},
        "silent.png": {"no"},
    }


def test_the_report_says_it_in_words(mixed: Dataset) -> None:
    text = DatasetReport(mixed, OPTIONS).markdown()
    for part in (
        "# Dataset report",
        "Add items: 19 are trained on, 20 are the minimum, 50-100 are good.",
        "Keep one of each group of near-duplicates: 1 item too many.",
        "Write captions: 1 item without.",
        "Vary what stands beside the trigger word: the model cannot tell it from light, night, zorks",
        "Crop by hand what does not fit a bucket: 1 item, up to 54% lost.",
        "`wide.png`: loses 54% to cropping",
        "| items trained on | 19 | 20 minimum, 50-100 good |",
        "`silent.png`: no caption",
        "Trigger word `zork`: in 18 of 18 captions.",
        "Steps per epoch: 19 at batch size 1",
        "| subject | 19 | 100% of 19 samples | 1 |",
    ):
        assert part in text, part
    assert "None found" not in text


def test_a_good_set_is_called_ready(tmp_path: Path) -> None:
    for number in range(24):
        scene(number, (640, 640)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(
            f"zork, picture number {number}, {'abcdefghijklmnopqrstuvwxyz'[number]}"
        )
    report = DatasetReport(scan_folder(tmp_path), OPTIONS)
    assert (
        report.problems == [] and report.headline() == "Ready to train; 50-100 items would be better still."
    )
    assert "None found." in report.markdown()


def test_a_table_survives_odd_names(tmp_path: Path) -> None:
    scene(1).save(tmp_path / "a|b `c`.png")
    text = DatasetReport(scan_folder(tmp_path), OPTIONS).markdown()
    assert "`a/b 'c'.png`" in text


def test_the_hostile_folder_is_reported(tmp_path: Path) -> None:
    hostile_folder(tmp_path / "set")
    dataset = scan_folder(tmp_path / "set", ScanOptions(on_bad_file="skip", recursive=True))
    report = DatasetReport(dataset, OPTIONS)
    assert "Mend or remove what was left out: 11 of the files." in report.markdown()
    sheet = contact_sheet(dataset, report.problems, "hostile")
    assert sheet.dtype == np.float32 and sheet.min() >= 0 and sheet.max() <= 1


def test_the_sheet_frames_what_is_wrong(mixed: Dataset) -> None:
    report = DatasetReport(mixed, OPTIONS)
    sheet = contact_sheet(mixed, report.problems, "mixed")
    marked = next(i for i, item in enumerate(mixed.items) if item.path.name == "blurred.png")
    row, column = divmod(marked, 8)
    y, x = 28 + 14 + row * (SIDE + 54 + 14), 14 + column * (SIDE + 14)
    assert np.allclose(sheet[y + 40, x - 3] * 255, (0xD2, 0x2F, 0x27), atol=1)
    plain = next(i for i in range(len(mixed.items)) if i not in {p.item for p in report.problems})
    y, x = 28 + 14 + plain // 8 * (SIDE + 54 + 14), 14 + plain % 8 * (SIDE + 14)
    assert np.allclose(sheet[y + 40, x - 4], 1)


def test_many_items_fit_on_a_sheet(tmp_path: Path) -> None:
    scene(1, (64, 64)).save(tmp_path / "a.png")
    (item,) = scan_folder(tmp_path).items
    many = Dataset((item,) * 500)
    assert contact_sheet(many, [], "many").shape[0] < 3000


def test_variants_side_by_side(mixed: Dataset) -> None:
    sheet = variants_sheet(mixed.with_augmentation(Augmentation(variants=3)), BucketOptions(resolution=64))
    assert sheet.shape[1] == 14 + 4 * (SIDE + 14)


def test_near_duplicates_by_looks_not_by_bytes() -> None:
    pictures = [scene(n) for n in range(30)]
    again = [
        pictures[4].resize((320, 256)),
        pictures[7].filter(ImageFilter.GaussianBlur(1)),
        Image.fromarray((np.asarray(pictures[9]) * 0.98).astype(np.uint8)),
    ]
    items = [Item(Path("x"), Facts(width=9, height=9, **measure(p))) for p in (*pictures, *again)]  # type: ignore[arg-type]
    assert near_duplicates(items) == [[4, 30], [7, 31], [9, 32]]


def test_shapes_of_other_colours_and_places_are_no_duplicates() -> None:
    pictures = [Image.fromarray(s.image()) for s in concept_scenes(20)]
    items = [Item(Path("x"), Facts(width=64, height=64, **measure(p))) for p in pictures]  # type: ignore[arg-type]
    assert near_duplicates(items) == []


def test_perceptual_hash_survives_size_and_tells_turns_apart() -> None:
    image = scene(3).convert("L")

    def differing(other: Image.Image) -> int:
        return bin(perceptual_hash(image) ^ perceptual_hash(other)).count("1")

    assert differing(image.resize((200, 160))) <= 2
    assert differing(image.transpose(Image.Transpose.ROTATE_90)) > 12


@pytest.mark.parametrize("seed", range(5))
def test_sharpness_steps(seed: int) -> None:
    sharp = scene(seed, (800, 600)).convert("L")
    assert sharp_scale(sharp) == 1
    assert sharp_scale(sharp.resize((400, 300)).resize((1600, 1200), Image.Resampling.BICUBIC)) <= 0.5
    assert sharp_scale(sharp.filter(ImageFilter.GaussianBlur(8))) <= 0.25
    assert sharp_scale(Image.new("L", (300, 300), 90)) == 0


def test_text_is_told_from_pictures() -> None:
    assert looks_like_text(writing().convert("L")) and looks_like_text(
        writing(text="Winter sale 2024").convert("L")
    )
    assert not any(looks_like_text(scene(n).convert("L")) for n in range(10))
    assert not any(looks_like_text(Image.fromarray(s.image()).convert("L")) for s in concept_scenes(12))


def said(*captions: str) -> list[Item]:
    return [Item(Path("x"), Facts(width=9, height=9), c) for c in captions]


def test_tags_and_fused_words() -> None:
    assert tag_counts(said("a, b", "B, c, b"))["b"] == 2
    assert tag_counts(said("a red cat", "the red dog"))["red"] == 2
    items = said(*(f"zork cat on {place}" for place in ("grass", "sand", "rock", "snow", "wood")), "zorky")
    assert fused_words(items, "zork") == ([], ["zorky"])
    assert fused_words(items[:5], "zork") == (["cat"], [])
    assert fused_words(items, "") == ([], [])


def test_training_without_captions_must_be_meant() -> None:
    """Items that are held out do not count."""

    def dataset(captions: list[str], held: int = 0) -> Dataset:
        items = [Item(Path(f"{n}.png"), Facts(width=64, height=64), c) for n, c in enumerate(captions)]
        return Dataset((*items, *[replace(items[-1], role="validation", caption="")] * held))

    for few in (["one", ""], ["one"], ["", "two", "three"]):
        require_captions(dataset(few, held=9))
    with pytest.raises(
        KilnError, match=r"2 of 3 items have no caption \(the first is 1.png\); write captions"
    ):
        require_captions(dataset(["one", " ", ""]))


def test_percentiles_are_numpys() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 100, 4096):
        values = rng.integers(0, 256, size, dtype=np.uint8)
        for percent in (0.5, 50, 99.5):
            found = _percentile(np.bincount(values, minlength=256), percent)
            assert found == pytest.approx(np.percentile(values, percent))


def test_edges_are_counted_as_they_were_sorted() -> None:
    """The 99.9th percentile of the second differences over the contrast, written down as the formula says."""

    def sorted_out(pixels: np.ndarray) -> bool:
        p = pixels.astype(np.float32)
        low, high = np.percentile(p[::4, ::4], (0.5, 99.5))
        second = np.abs(4 * p[1:-1, 1:-1] - p[:-2, 1:-1] - p[2:, 1:-1] - p[1:-1, :-2] - p[1:-1, 2:])
        index = int(0.999 * (second.size - 1))
        return bool(high - low >= 8 and np.sort(second, axis=None)[index] >= SHARP * 4 * (high - low))

    answers = []
    for seed in range(24):
        blurred = scene(seed, (200 + seed, 150)).convert("L").filter(ImageFilter.GaussianBlur(seed / 8))
        pixels = np.asarray(blurred)
        answers.append(sorted_out(pixels))
        assert _has_sharp_edges(pixels) == answers[-1]
    assert 4 < sum(answers) < 20
    assert not _has_sharp_edges(np.full((64, 64), 90, np.uint8))
