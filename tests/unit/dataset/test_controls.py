"""Control pictures: found by name, cut like their targets, kept beside the latents, given to the model or named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.media import clip
from tests.unit.toy import ToyEncoder
from trainer.conditioning import ItemConditioning
from trainer.dataset.augment import Augmentation
from trainer.dataset.batches import ItemStore, SampleDraw
from trainer.dataset.browse import Part, part_state
from trainer.dataset.buckets import Bucket, BucketOptions
from trainer.dataset.contact_sheet import GAP, SIDE, contact_sheet
from trainer.dataset.controls import Controls
from trainer.dataset.encode import encode_dataset
from trainer.dataset.encode_jobs import job_of
from trainer.dataset.encoded import NOISE_MASK, EncodedItem
from trainer.dataset.items import Dataset, Item
from trainer.dataset.loading import load_controls, load_pixels
from trainer.dataset.quality import find_problems
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.dataset.sidecars import Sidecars
from trainer.errors import KilnError

PLAIN = Augmentation(
    crop_min_scale=0.5, horizontal_flip=0.5, color_jitter=0, noise_min=0, noise_max=0, variants=6
)


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two targets, the same picture."""
    for name in ("a", "b"):
        picture(tmp_path / "set" / f"{name}.png")
    return tmp_path / "set"


def scan(folder: Path, *controls: Path, **options: object) -> Dataset:
    return scan_folder(folder, ScanOptions(control_folders=controls, **options))  # type: ignore[arg-type]


def names(dataset: Dataset) -> dict[str, list[str]]:
    return {i.path.name: [c.path.name for c in i.controls] for i in dataset.items}


def test_by_name_whatever_the_ending_and_case(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "before" / "A.jpg")
    picture(tmp_path / "before" / "b.webp")
    assert names(scan(folder, tmp_path / "before")) == {"a.png": ["A.jpg"], "b.png": ["b.webp"]}


def test_several_folders_and_several_of_an_item(folder: Path, tmp_path: Path) -> None:
    for number in (10, 2, 1):
        picture(tmp_path / "before" / f"a_{number}.png")
    picture(tmp_path / "before" / "b.png")
    for name in ("a", "b"):
        picture(tmp_path / "depth" / f"{name}.png")
    found = names(scan(folder, tmp_path / "before", tmp_path / "depth"))
    assert found == {"a.png": ["a_1.png", "a_2.png", "a_10.png", "a.png"], "b.png": ["b.png", "b.png"]}


def test_a_target_with_a_number_keeps_its_own(tmp_path: Path) -> None:
    for place in ("set", "before"):
        picture(tmp_path / place / "a.png")
        picture(tmp_path / place / "a_1.png")
    found = names(scan(tmp_path / "set", tmp_path / "before"))
    assert found == {"a.png": ["a.png"], "a_1.png": ["a_1.png"]}


def test_numbered_targets_do_not_take_each_others_pictures(tmp_path: Path) -> None:
    """A folder of img.png, img_1.png and img_2.png, with one control picture for each."""
    for name in ("img", "img_1", "img_2"):
        picture(tmp_path / "set" / f"{name}.png")
        picture(tmp_path / "before" / f"{name}.jpg")
    picture(tmp_path / "before" / "img_2_0.png")
    found = names(scan(tmp_path / "set", tmp_path / "before"))
    assert found == {
        "img.png": ["img.jpg"],
        "img_1.png": ["img_1.jpg"],
        "img_2.png": ["img_2.jpg", "img_2_0.png"],
    }
    (tmp_path / "set" / "img_2.png").unlink()
    found = names(scan(tmp_path / "set", tmp_path / "before"))
    assert found["img.png"] == ["img.jpg", "img_2.jpg"], "which is no target's own any more"


def test_a_folder_of_numbered_targets_below_and_controls_in_one_place(tmp_path: Path) -> None:
    for name in ("img", "img_1"):
        picture(tmp_path / "set" / "deep" / f"{name}.png")
        picture(tmp_path / "before" / f"{name}.png")
    found = names(scan(tmp_path / "set", tmp_path / "before", recursive=True))
    assert found == {"img.png": ["img.png"], "img_1.png": ["img_1.png"]}


def test_of_two_of_one_name_one_is_used_and_the_other_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.webp", "b.jpg"):
        picture(tmp_path / "before" / name)
    dataset = scan(folder, tmp_path / "before")
    assert names(dataset) == {"a.png": ["a.png"], "b.png": ["b.jpg"]}
    assert any("2 control pictures are not used" in r and "a.jpg, b.webp" in r for r in dataset.remarks)
    assert not any("belong to no item" in r for r in dataset.remarks)
    picture(folder / "a.jpg")
    dataset = scan(folder, tmp_path / "before")
    assert names(dataset)["a.jpg"] == ["a.jpg"] and names(dataset)["a.png"] == ["a.png"]
    assert any("1 control pictures are not used" in r for r in dataset.remarks)


def test_a_control_folder_within_the_dataset_is_no_part_of_it(folder: Path) -> None:
    for place in ("before", "before/depth"):
        picture(folder / place / "a.png")
        picture(folder / place / "b.png")
    for recursive in (False, True):
        dataset = scan(folder, folder / "before", folder / "before" / "depth", recursive=recursive)
        assert names(dataset) == {"a.png": ["a.png", "a.png"], "b.png": ["b.png", "b.png"]}
        assert dataset.remarks == ()


def test_a_linked_control_folder_within_the_dataset(folder: Path, tmp_path: Path) -> None:
    """The node resolves the folders that it is told."""
    for name in ("a", "b"):
        picture(tmp_path / "elsewhere" / f"{name}.png")
    (folder / "before").symlink_to(tmp_path / "elsewhere")
    dataset = scan(folder, tmp_path / "elsewhere", recursive=True)
    assert names(dataset) == {"a.png": ["a.png"], "b.png": ["b.png"]} and dataset.remarks == ()


def test_what_a_column_names_is_no_item_unless_something_is_said_of_it(folder: Path) -> None:
    """As of a chain of edits, whose middle is made and made from."""
    picture(folder / "ctl" / "p.png")
    picture(folder / "c.png")
    rows = [
        {"file_name": "a.png", "control_path": "ctl/p.png"},
        {"file_name": "b.png", "control_path": "a.png"},
        {"file_name": "a.png", "control_path": "c.png"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[:2])), "utf-8")
    for recursive, pictures in ((False, 3), (True, 3)):
        dataset = scan(folder, recursive=recursive)
        assert len(dataset.items) == pictures, names(dataset)
        assert not any("recursive is off" in r for r in dataset.remarks)
    assert any("1 pictures that a column names" in r and "p.png" in r for r in dataset.remarks)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[1:])), "utf-8")
    assert names(scan(folder)) == {"a.png": ["c.png"], "b.png": ["a.png"]}


def test_what_is_said_of_a_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many items there are, and though columns are looked at before the items are made."""
    for number in range(20):
        picture(folder / f"{number}.png")
    asked: list[Path] = []
    read, of_columns = Sidecars.read, Controls.of_columns
    monkeypatch.setattr(Sidecars, "read", lambda self, m, row: asked.append(m) or read(self, m, row))
    looked: list[Path] = []
    monkeypatch.setattr(
        Controls, "of_columns", lambda self, m, fields: looked.append(m) or of_columns(self, m, fields)
    )
    assert len(scan(folder).items) == 22
    assert len(asked) == 22 and len(looked) == 44


@pytest.mark.parametrize(
    "column",
    [
        "conditioning_image",
        "Control_Path",
        " control path ",
        "control_image_file_name",
        "conditioning_image_1",
    ],
)
def test_columns_as_other_trainers_name_them(folder: Path, column: str) -> None:
    picture(folder / "from" / "1.png")
    row = {"file_name": "a.png", "text": "x", column: "from/1.png"}
    (folder / "metadata.jsonl").write_text(json.dumps(row), "utf-8")
    assert names(scan(folder)) == {"a.png": ["1.png"], "b.png": []}


def test_a_column_with_a_list(folder: Path) -> None:
    for name in ("1", "2", "x, y"):
        picture(folder / "from" / f"{name}.png")
    rows = [
        {"file_name": "a.png", "control_path": ["from/2.png", "from/1.png"]},
        {"file_name": "b.png", "control_path": "from/x, y.png"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert names(scan(folder)) == {"a.png": ["2.png", "1.png"], "b.png": ["x, y.png"]}


def test_a_replaced_picture_that_a_column_names_is_noticed(folder: Path) -> None:
    control = picture(folder / "from" / "1.png")
    (folder / "a.json").write_text(json.dumps({"control_path": "from/1.png"}), "utf-8")
    before = part_state(folder, Part())
    assert before and part_state(folder, Part()) == before
    picture(control, "blue", (128, 96))
    assert part_state(folder, Part()) != before


def test_pictures_named_like_controls_are_told_where_they_are_items(folder: Path) -> None:
    picture(folder / "a_control.png")
    assert any("a_control.png" in r and "unless control_folders" in r for r in scan(folder).remarks)
    picture(folder / "b_control.png")
    assert not any("unless" in r for r in scan(folder, folder).remarks)


def test_one_whose_target_is_gone_is_no_item(folder: Path) -> None:
    for name in ("a_control", "b_control", "gone_control", "remote_control"):
        picture(folder / f"{name}.png")
    (folder / "remote_control.txt").write_text("a remote control", "utf-8")
    with pytest.raises(KilnError, match=r"remote_control.png has no control picture"):
        scan(folder, folder)
    dataset = scan(folder, folder, on_bad_file="skip")
    assert names(dataset) == {"a.png": ["a_control.png"], "b.png": ["b_control.png"]}
    assert any("belong to no item: gone_control.png" in r for r in dataset.remarks)


def test_beside_with_and_without_a_number(folder: Path) -> None:
    for name in ("a_control_1", "a_control", "a_control_0", "b_control"):
        picture(folder / f"{name}.png")
    assert names(scan(folder, folder))["a.png"] == ["a_control.png", "a_control_0.png", "a_control_1.png"]


def test_files_of_control_folders_that_are_not_read_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "before" / name)
    (tmp_path / "before" / "layers.xcf").write_bytes(b"x")
    assert any(p.name == "layers.xcf" for p in scan(folder, tmp_path / "before").unread)


def test_a_picture_of_which_much_is_cut_off_is_a_problem(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "before" / "a.png", size=(640, 48))
    picture(tmp_path / "before" / "b.png", size=(76, 48))
    found = [p for p in find_problems(scan(folder, tmp_path / "before")) if p.kind == "control cropped"]
    assert [p.item for p in found] == [0]
    assert "640x48 pixels instead of 64x48, and 90% of it is cut off" in found[0].text


def test_the_suffix_is_known_in_a_folder_of_their_own(folder: Path, tmp_path: Path) -> None:
    for name in ("a_control_1", "a_control_0", "b_control"):
        picture(tmp_path / "before" / f"{name}.png")
    found = names(scan(folder, tmp_path / "before"))
    assert found == {"a.png": ["a_control_0.png", "a_control_1.png"], "b.png": ["b_control.png"]}


def test_items_without_beside_others_with_are_named(folder: Path) -> None:
    picture(folder / "from" / "1.png")
    (folder / "a.json").write_text(json.dumps({"control_path": "from/1.png"}), "utf-8")
    assert any(
        "1 items have no control picture, and the others have: b.png" in r for r in scan(folder).remarks
    )


def test_a_still_made_from_a_clip_is_named(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "before" / "a.png")
    clip(tmp_path / "before" / "b.mp4")
    assert any(
        "1 stills have a clip" in r and "b.png" in r for r in scan(folder, tmp_path / "before").remarks
    )


def test_where_all_are_left_out_the_reason_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    with pytest.raises(
        KilnError, match=r"a.png has no control picture .* Further files that cannot be used \(1\): b.png"
    ):
        scan(folder, tmp_path / "before", on_bad_file="skip")


def test_beside_their_targets(folder: Path) -> None:
    picture(folder / "a_control.png")
    picture(folder / "b_control_1.png")
    picture(folder / "b_control_0.png")
    picture(folder / "c.png")
    picture(folder / "c-condlabel.png")
    assert len(scan(folder).items) == 6, "without being asked for they are items"
    dataset = scan(folder, folder)
    assert names(dataset) == {
        "a.png": ["a_control.png"],
        "b.png": ["b_control_0.png", "b_control_1.png"],
        "c.png": ["c-condlabel.png"],
    }
    assert not any("condlabel" in remark for remark in dataset.remarks)


def test_by_the_column_of_a_table(folder: Path) -> None:
    for name in ("1", "2"):
        picture(folder / "from" / f"{name}.png")
    rows = [
        {"file_name": "a.png", "control_path_1": "from/2.png", "control_path_0": "from/1.png"},
        {"file_name": "b.png", "control_path": str(folder / "from" / "2.png")},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert names(scan(folder)) == {"a.png": ["1.png", "2.png"], "b.png": ["2.png"]}


@pytest.mark.parametrize("value", ["from/3.png", "../secret.png", "/etc/passwd", "a\0b", "x" * 3000])
def test_a_column_that_leads_nowhere_is_named(folder: Path, value: str) -> None:
    picture(folder.parent / "secret.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "control_path": value}), "utf-8")
    with pytest.raises(KilnError, match=r"control_path of .*a\.png names") as said:
        scan(folder)
    assert len(str(said.value)) < 400


def test_missing_and_surplus_ones_are_named(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "before" / "a.png")
    picture(tmp_path / "before" / "z.png")
    with pytest.raises(KilnError, match=r"b\.png has no control picture in .*before"):
        scan(folder, tmp_path / "before")
    dataset = scan(folder, tmp_path / "before", on_bad_file="skip")
    assert names(dataset) == {"a.png": ["a.png"]}
    assert any(r"1 pictures of the control folder" in r and "z.png" in r for r in dataset.remarks)
    assert "1 with control pictures" in dataset.describe()


def test_the_sheet_shows_them_beside_their_items(folder: Path, tmp_path: Path) -> None:
    """Two controls and the item, red, in one row; of an item with one control, the place before it is empty."""
    first, second = tmp_path / "first", tmp_path / "second"
    for name in ("a", "b"):
        picture(first / f"{name}.png", "blue", (64, 64))
        picture(second / f"{name}.png", "lime", (64, 64))
        picture(folder / f"{name}.png", "red", (64, 64))
    dataset = scan(folder, first, second)
    a, b = dataset.items
    sheet = contact_sheet(replace(dataset, items=(a, replace(b, controls=b.controls[:1]))), [], "two")
    step, top = SIDE + GAP, 28 + GAP + SIDE // 2
    middles = [sheet[top, GAP + place * step + SIDE // 2].round().tolist() for place in range(6)]
    red, green, blue, paper = [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]
    assert middles == [blue, green, red, paper, blue, red]


@pytest.mark.parametrize("augmented", [False, True])
def test_cut_and_flipped_like_the_target(tmp_path: Path, augmented: bool) -> None:
    """A control picture that is the target, at twice the size, gives the target's pixels; colours are not changed."""
    draws = np.random.default_rng(0)
    small = draws.integers(0, 255, (12, 20, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((160, 96), Image.Resampling.BILINEAR)
    (tmp_path / "set").mkdir()
    (tmp_path / "before").mkdir()
    image.save(tmp_path / "set" / "a.png")
    image.resize((320, 192), Image.Resampling.BICUBIC).save(tmp_path / "before" / "a.png")
    (item,) = scan(tmp_path / "set", tmp_path / "before").items
    bucket = Bucket(frames=1, height=64, width=64)
    for variant in range(6 if augmented else 1):
        settings = PLAIN if augmented else None
        item = Item(item.path, item.facts, controls=item.controls, augmentation=settings)
        target = load_pixels(item, bucket, 16, variant).frames
        (control,) = load_controls(item, bucket, 16, variant)
        assert control.shape == target.shape == (1, 64, 64, 3)
        assert np.abs(control - target).mean() < 0.02
    jittered = Item(
        item.path, item.facts, controls=item.controls, augmentation=Augmentation(color_jitter=0.9)
    )
    plain = Item(item.path, item.facts, controls=item.controls, augmentation=Augmentation())
    changed, same = (load_controls(i, bucket, 16)[0] for i in (jittered, plain))
    assert np.array_equal(changed, same)


def test_of_another_shape_the_part_under_the_target_is_taken(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png", size=(64, 64))
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste("blue", (32, 0, 96, 64))  # the middle
    (tmp_path / "before").mkdir()
    wide.save(tmp_path / "before" / "a.png")
    (item,) = scan(tmp_path / "set", tmp_path / "before").items
    (control,) = load_controls(item, Bucket(frames=1, height=64, width=64), 16)
    assert np.abs(control - np.array([0, 0, 1.0])).max() < 0.01


def test_clips(tmp_path: Path) -> None:
    for place, frames in (("set", 20), ("before", 20), ("short", 9)):
        (tmp_path / place).mkdir()
        clip(tmp_path / place / "a.mp4", frames=frames, fps=16)
    (item,) = scan(tmp_path / "set", tmp_path / "before").items
    bucket = Bucket(frames=9, height=48, width=64)
    (control,) = load_controls(item, bucket, 16)
    assert np.abs(control - load_pixels(item, bucket, 16).frames).max() < 0.01
    (short,) = scan(tmp_path / "set", tmp_path / "short").items
    with pytest.raises(KilnError, match=r"has 9 frames and .*a\.mp4 20"):
        load_controls(short, bucket, 16)


def timed_clip(path: Path, seconds: float, fps: int) -> None:
    """Its brightness says the time: 100 in a second."""
    clip(path, frames=round(seconds * fps), size=(64, 64), fps=fps, step=100 / fps)


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fps", [8, 16, 24, 50])
def test_a_clip_of_another_rate_shows_what_its_target_shows(tmp_path: Path, fps: int, place: float) -> None:
    timed_clip(tmp_path / "set" / "a.mp4", 2, 16)
    timed_clip(tmp_path / "before" / "a.mp4", 2, fps)
    (item,) = scan(tmp_path / "set", tmp_path / "before").items
    item = replace(item, place=place)
    bucket = Bucket(frames=9, height=64, width=64)
    for rate in (16.0, 8.0, 0.0):
        (control,) = load_controls(item, bucket, rate)
        target = load_pixels(item, bucket, rate).frames
        apart = np.abs(control - target).max()
        assert apart <= 100 / 255 / min(fps, 16) + 0.03, "no more than a frame and the codec"


def test_a_clip_is_long_enough_by_its_seconds(tmp_path: Path) -> None:
    timed_clip(tmp_path / "set" / "a.mp4", 2, 16)
    timed_clip(tmp_path / "short" / "a.mp4", 1.5, 24)  # more frames than the target
    timed_clip(tmp_path / "slow" / "a.mp4", 2, 8)
    bucket = Bucket(frames=9, height=64, width=64)
    (item,) = scan(tmp_path / "set", tmp_path / "short").items
    with pytest.raises(KilnError, match=r"is 1.50 s long and .*a.mp4 2.00 s"):
        load_controls(item, bucket, 16)
    (item,) = scan(tmp_path / "set", tmp_path / "slow").items
    assert len(load_controls(item, bucket, 16)[0]) == 9


def test_of_another_rate_it_is_encoded_anew(tmp_path: Path) -> None:
    """What an earlier version had made of it was of the wrong frames; of the same rate it stays."""
    timed_clip(tmp_path / "set" / "a.mp4", 2, 16)
    timed_clip(tmp_path / "before" / "a.mp4", 2, 24)
    (item,) = scan(tmp_path / "set", tmp_path / "before").items
    (control,) = item.controls
    same = replace(control, facts=replace(control.facts, fps=16.0, frames=32))
    guides = []
    for each in (control, same):
        job = job_of(
            replace(item, controls=(each,)), BucketOptions(resolution=64), 0, Guiding(), tmp_path / "kept"
        )
        guides.append(job.guide)
    assert guides[0] != guides[1]


class Guiding(ToyEncoder):
    """Gives the mean of the control pictures, or of the first frame, to the model; counts how often it is asked."""

    def __init__(self, sees: bool = False) -> None:
        super().__init__()
        self.sees, self.guides = sees, 0

    def guide_of(self, item: Item, frames: int) -> str:
        return "" if self.sees else "mean"

    def text_sees_controls(self, item: Item) -> str:
        return "looks" if self.sees and item.controls else ""

    def encode_text(self, caption: str, controls: Sequence[np.ndarray] = ()) -> ItemConditioning:
        found = super().encode_text(caption)
        return {**found, "seen": torch.tensor([float(c.mean()) for c in controls])} if controls else found

    def encode_guide(
        self, item: Item, frames: np.ndarray, controls: Sequence[np.ndarray]
    ) -> ItemConditioning:
        self.guides += 1
        mask = torch.ones(1, 1, frames.shape[1] // 8, frames.shape[2] // 8)
        mask[..., :2] = 0
        return {"given": torch.tensor([float(c.mean()) for c in controls or [frames]]), NOISE_MASK: mask}


def paired(folder: Path) -> Dataset:
    picture(folder.parent / "before" / "a.png", "white")
    picture(folder.parent / "before" / "b.png", "black")
    return scan(folder, folder.parent / "before")


def encode(dataset: Dataset, folder: Path, encoder: ToyEncoder, dropout: float = 0.0) -> list[EncodedItem]:
    options = BucketOptions(resolution=64)
    return list(encode_dataset(dataset, encoder, folder, options, guide_dropout=dropout).items)


def test_what_is_made_of_pixels_is_kept_and_given(folder: Path, tmp_path: Path) -> None:
    encoder = Guiding()
    items = encode(paired(folder), tmp_path / "kept", encoder)
    assert encoder.guides == 2, "one for each, though the targets are the same picture"
    assert [EncodedItem.from_dict(json.loads(json.dumps(i.to_dict()))) for i in items] == items
    batch = ItemStore(items).load([SampleDraw(0, 0, 0), SampleDraw(1, 0, 1)])
    assert [float(i.conditioning["given"]) for i in batch.items] == pytest.approx([1.0, 0.0])
    assert all(NOISE_MASK not in i.conditioning and "cross_attn" in i.conditioning for i in batch.items)
    assert batch.mask is not None and batch.items[0].noise_mask is not None
    assert torch.equal(batch.mask[0], batch.items[0].noise_mask), "what is given is not learned"
    encode(paired(folder), tmp_path / "kept", encoder)
    assert encoder.guides == 2, "from the cache"
    picture(folder.parent / "before" / "b.png", "gray")
    encode(scan(folder, folder.parent / "before"), tmp_path / "kept", encoder)
    assert encoder.guides == 3, "another control picture"


def test_a_share_goes_without(folder: Path, tmp_path: Path) -> None:
    items = encode(paired(folder), tmp_path / "kept", Guiding(), dropout=0.3)
    store = ItemStore(items, seed=3)
    given = [len(store.choose(SampleDraw(0, epoch, 0))) == 3 for epoch in range(1000)]
    assert 640 < sum(given) < 760


def test_a_share_of_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KilnError, match=r"first_frame_dropout is 0.1, and no item has a first frame"):
        encode(scan(folder), tmp_path / "kept", ToyEncoder(), dropout=0.1)
    with pytest.raises(
        KilnError, match=r"first_frame_dropout is 0.1, and the text encoder looks at pictures"
    ):
        encode(paired(folder), tmp_path / "kept", Guiding(sees=True), dropout=0.1)


def test_a_text_encoder_that_looks(folder: Path, tmp_path: Path) -> None:
    encoder = Guiding(sees=True)
    items = encode(paired(folder), tmp_path / "kept", encoder)
    assert [float(i.load()[1]["seen"]) for i in items] == pytest.approx([1.0, 0.0])
    assert items[0].text_path != items[1].text_path, "the same caption, other pictures"
    other = Guiding(sees=True)
    other.image_fingerprint = "another VAE, which makes other references"
    again = encode(paired(folder), tmp_path / "kept", other)
    assert again[0].text_path != items[0].text_path
    dataset = paired(folder).with_augmentation(Augmentation(variants=2))
    with pytest.raises(KilnError, match="set variants to 1"):
        encode(dataset, tmp_path / "kept", encoder)


def test_datasets_without_keep_their_fingerprint(folder: Path, tmp_path: Path) -> None:
    """Runs of earlier versions are resumed: addresses and fingerprints of plain datasets are what they were."""
    plain = encode_dataset(scan(folder), ToyEncoder(), tmp_path / "kept", BucketOptions(resolution=64))
    assert not any(i.guides for i in plain.items)
    guided = encode_dataset(scan(folder), Guiding(), tmp_path / "kept", BucketOptions(resolution=64))
    assert guided.fingerprint != plain.fingerprint and guided.encoded_now == 1
    assert [i.latent_path for i in guided.items] == [i.latent_path for i in plain.items]
