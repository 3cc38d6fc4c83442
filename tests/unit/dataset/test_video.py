"""Clips play at their own speed, whatever their frame rate; those of one frame are stills."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media import clip, moving_gif, scene, uneven_clip
from trainer.dataset import scan
from trainer.dataset.buckets import Bucket, BucketOptions, bucket_of
from trainer.dataset.contact_sheet import contact_sheet
from trainer.dataset.encode import encode_dataset
from trainer.dataset.items import Dataset, Item
from trainer.dataset.loading import load_pixels
from trainer.dataset.pieces import ClipPart, cut_clips, describe_use
from trainer.dataset.report import DatasetReport
from trainer.dataset.scan import scan_folder
from trainer.dataset.video import pick_frames, usable_frames

from ..toy import ToyEncoder


def only(folder: Path) -> Item:
    (item,) = scan_folder(folder).items
    return item


def levels(item: Item, bucket: Bucket, fps: float = 16.0) -> np.ndarray:
    """Brightness of each trained frame, 0-255."""
    brightness: np.ndarray = load_pixels(item, bucket, fps).frames.mean((1, 2, 3)) * 255
    return brightness


def test_a_slow_clip_keeps_its_speed(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", frames=24, fps=8)  # 10 brighter each frame: 80 a second
    item = only(tmp_path)
    bucket = bucket_of(item, BucketOptions(resolution=64))
    assert bucket.frames == 33, "2.9 seconds at 16 a second"
    seen = levels(item, bucket)
    assert seen[32] - seen[0] == pytest.approx(2 * 80, abs=11)
    assert bucket_of(item, BucketOptions(resolution=64, fps=0)).frames == 17, "0 takes every frame once"


def test_a_slightly_slow_clip_repeats_nothing() -> None:
    assert pick_frames(31, 15.5, 9, 16) == list(range(11, 20)) and usable_frames(31, 15.5, 16) == 31
    assert pick_frames(31, 8, 5, 16) == [14, 15, 15, 16, 16]


def test_a_clip_of_variable_rate_keeps_its_speed(tmp_path: Path) -> None:
    """2 frames a second for 8 s, then 60 a second for 2 s; 25 brighter a second."""
    uneven_clip(tmp_path / "a.mp4", [n * 0.5 for n in range(16)] + [8 + n / 60 for n in range(120)])
    item = only(tmp_path)
    assert not item.facts.even and item.facts.fps == pytest.approx(135 / (8 + 119 / 60), rel=0.01)
    bucket = bucket_of(item, BucketOptions(resolution=64))
    seen = levels(item, bucket)
    assert bucket.frames == 33 and seen[-1] - seen[0] == pytest.approx(2 * 25, abs=13), (
        "steps of half a second"
    )
    assert list(np.diff(seen).round()).count(0) > 20
    everything = bucket_of(item, BucketOptions(resolution=64, max_frames=161))
    seen = levels(item, everything)
    assert everything.frames == 129 and seen[-1] - seen[0] == pytest.approx(8 * 25, abs=13)


def test_two_frames_far_apart_are_no_motion_at_once(tmp_path: Path) -> None:
    uneven_clip(tmp_path / "a.mp4", [0, 1, 1.1, 4])
    seen = levels(only(tmp_path), Bucket(33, 48, 64))
    assert np.diff(seen).max() < 40


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_clip_of_one_frame_is_a_still(tmp_path: Path, kind: str) -> None:
    (folder := tmp_path / "set").mkdir()
    if kind == "mp4":
        clip(folder / "a.mp4", frames=1)
    else:
        moving_gif(folder / "a.gif", frames=1)
    dataset = scan_folder(folder)
    (item,) = dataset.items
    assert (item.facts.frames, item.facts.fps) == (1, 0.0) and dataset.describe().startswith("1 images, 0")
    encoded = encode_dataset(dataset, ToyEncoder(), tmp_path / "kept", BucketOptions(resolution=64))
    assert encoded.items[0].shape == (4, 1, 6, 8) and encoded.items[0].frame_rate == 0
    assert contact_sheet(dataset, [], "one").shape[2] == 3


def test_caches_of_plain_clips_are_found_and_of_others_made_anew(tmp_path: Path) -> None:
    """Addresses of an earlier version: the same where the same frames are chosen."""
    (folder := tmp_path / "set").mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "still.png")
    clip(folder / "fast.mp4", frames=40, fps=24)
    clip(folder / "slow.mp4", frames=40, fps=8)
    clip(folder / "same.mp4", frames=40, fps=16)
    encoder = ToyEncoder()
    encoder.image_fingerprint = "vae"
    options = BucketOptions(resolution=64, max_frames=9)
    encoded = encode_dataset(scan_folder(folder), encoder, tmp_path / "kept", options)
    found = {
        i.path.name: e.latent_path.stem for i, e in zip(scan_folder(folder).items, encoded.items, strict=True)
    }
    for name in ("fast.mp4", "same.mp4", "still.png"):
        assert found[name] == once(folder / name, moves=name.endswith("mp4"))
    assert found["slow.mp4"] != once(folder / "slow.mp4", moves=True)


def once(path: Path, moves: bool) -> str:
    """The address that the first versions gave."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    parts = [digest, repr((9 if moves else 1, 48, 64)), "vae", *(["fps 16.0"] if moves else [])]
    return hashlib.sha256(b"2" + b"".join(b"\0" + p.encode() for p in parts)).hexdigest()


def test_facts_of_an_earlier_version_are_kept_where_they_are_still_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "set").mkdir()
    scene(1, (64, 64)).save(folder / "plain.png")
    Image.new("RGBA", (64, 64), (9, 9, 9, 90)).save(folder / "clear.png")
    clip(folder / "moving.mp4")
    scan_folder(folder, facts_cache=tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    data = json.loads(file.read_text())
    for entry in data["files"].values():
        del entry[2]["even"], entry[2]["kept"]
    file.write_text(json.dumps({**data, "format": 1}))
    looked: list[str] = []
    real = scan.measure_file
    monkeypatch.setattr(scan, "measure_file", lambda path: (looked.append(path.name), real(path))[1])
    dataset = scan_folder(folder, facts_cache=tmp_path / "kept")
    assert sorted(looked) == ["clear.png", "moving.mp4"] and dataset == scan_folder(folder)


def seen_of(folder: Path, part: ClipPart, pieces: int = 4, max_frames: int = 9) -> list[list[int]]:
    """Numbers of the frames of every piece: the clip grows 10 brighter each frame."""
    options = BucketOptions(resolution=64, max_frames=max_frames)
    items = cut_clips(scan_folder(folder), options, part, pieces).items
    return [
        (levels(i, bucket_of(i, options)) / 10).round().astype(int).tolist()
        for i in items
        if i.facts.frames > 1
    ]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_which_part_of_a_clip_is_seen(tmp_path: Path, ending: str) -> None:
    clip(tmp_path / f"a.{ending}", frames=25)
    scene(1, (64, 64)).save(tmp_path / "still.png")
    assert seen_of(tmp_path, "middle") == [list(range(8, 17))]
    assert seen_of(tmp_path, "start") == [list(range(9))]
    assert seen_of(tmp_path, "several pieces") == [list(range(9)), list(range(16, 25))], "no more fit"
    assert seen_of(tmp_path, "several pieces", pieces=3, max_frames=5) == [
        [*range(5)],
        [*range(10, 15)],
        [*range(20, 25)],
    ]
    whole = seen_of(tmp_path, "whole in pieces")
    assert len(whole) == 3 and {number for piece in whole for number in piece} == set(range(25))
    assert seen_of(tmp_path, "whole in pieces", max_frames=25) == [list(range(25))]


def test_pieces_late_in_a_long_clip_are_the_right_ones(tmp_path: Path) -> None:
    """Found by a jump to a key frame; 20 s, brightness 12 a second."""
    times = [n / 24 for n in range(480)]
    uneven_clip(tmp_path / "a.mp4", times, per_second=12)
    options = BucketOptions(resolution=64, max_frames=17)
    items = cut_clips(scan_folder(tmp_path), options, "whole in pieces").items
    assert len(items) == 19
    for item in items:
        seen = levels(item, bucket_of(item, options))
        begin = (480 / 24 - 17 / 16) * item.place
        assert seen[0] == pytest.approx(begin * 12, abs=2.5) and seen[-1] == pytest.approx(
            (begin + 1) * 12, abs=2.5
        )


def test_the_unused_share_is_said(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", frames=49)
    clip(tmp_path / "slow.mp4", frames=9, fps=8)
    dataset, options = scan_folder(tmp_path), BucketOptions(resolution=64, max_frames=17)
    used, slow = describe_use(dataset, options)
    assert used == "clips: 2.1 of 4.1 s are trained on; 48% is not seen, which clip_part decides"
    assert slow.startswith("1 clips have fewer than 16 frames a second")
    whole = list(describe_use(cut_clips(dataset, options, "whole in pieces"), options))
    assert whole[0] == "clips: 4.1 of 4.1 s are trained on"
    assert not list(describe_use(Dataset(()), options))
    text = DatasetReport(dataset, options).markdown()
    assert "Clips: 2.1 of 4.1 s are trained on; 48% is not seen, which clip_part decides." in text


def test_every_piece_is_encoded_and_the_middle_where_it_was(tmp_path: Path) -> None:
    clip(tmp_path / "set" / "a.mp4", frames=25)
    dataset, encoder = scan_folder(tmp_path / "set"), ToyEncoder()
    options = BucketOptions(resolution=64, max_frames=9)
    middle = encode_dataset(dataset, encoder, tmp_path / "kept", options)
    pieces = encode_dataset(
        cut_clips(dataset, options, "whole in pieces"), encoder, tmp_path / "kept", options
    )
    assert pieces.items[1].latent_path == middle.items[0].latent_path
    assert len({i.latent_path for i in pieces.items}) == 3 and pieces.encoded_now == 2
