"""The cache of encoded items, and the order in which they are shown."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from tests.media import clip
from trainer.conditioning import ItemConditioning
from trainer.dataset.augment import Augmentation
from trainer.dataset.batches import BatchOrder, ItemStore, SampleDraw
from trainer.dataset.buckets import BucketOptions, bucket_of
from trainer.dataset.caption_variants import CaptionVariation
from trainer.dataset.encode import encode_dataset
from trainer.dataset.encode_progress import EncodeProgress, Tracker
from trainer.dataset.encoded import EncodedDataset, EncodedItem, PixelSize, load_latent
from trainer.dataset.items import Dataset
from trainer.dataset.loading import crop_offset, load_pixels
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.errors import KilnError

from ..toy import TEXT, ToyEncoder, make_encoded


def folder_of(tmp_path: Path, count: int = 3) -> Dataset:
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (32, 32), (i * 12, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {'x' * i}")
    return scan_folder(folder)


def encode(dataset: Dataset, tmp_path: Path, encoder: ToyEncoder, **options: int) -> EncodedDataset:
    return encode_dataset(
        dataset, encoder, tmp_path / "cache", BucketOptions(**{"resolution": 64, **options})
    )


def test_nothing_is_encoded_twice(tmp_path: Path) -> None:
    dataset, encoder = folder_of(tmp_path), ToyEncoder()
    first = encode(dataset, tmp_path, encoder)
    assert (encoder.images, encoder.texts, first.encoded_now) == (3, 3, 6)
    again = encode(dataset, tmp_path, encoder)
    assert (encoder.images, encoder.texts, again.encoded_now) == (3, 3, 0)
    assert again.items == first.items and again.fingerprint == first.fingerprint
    assert first.describe() == "3 items, latents 4x1x4x4 (3)\n6 of 6 encoded now"


def test_one_change_encodes_one_thing(tmp_path: Path) -> None:
    encoder = ToyEncoder()
    first = encode(folder_of(tmp_path), tmp_path, encoder)
    (tmp_path / "images" / "1.txt").write_text("another caption")
    second = encode(scan_folder(tmp_path / "images"), tmp_path, encoder)
    assert second.encoded_now == 1 and second.fingerprint != first.fingerprint
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "images" / "2.png")
    assert encode(scan_folder(tmp_path / "images"), tmp_path, encoder).encoded_now == 1
    encoder.image_fingerprint = "another VAE"
    assert encode(scan_folder(tmp_path / "images"), tmp_path, encoder).encoded_now == 3


def test_what_comes_back_is_what_went_in(tmp_path: Path) -> None:
    dataset, encoder = folder_of(tmp_path), ToyEncoder()
    encoded = encode(dataset, tmp_path, encoder)
    latent, conditioning = encoded.items[2].load()
    assert latent.shape == (4, 1, 4, 4) == encoded.items[2].shape
    torch.testing.assert_close(conditioning["cross_attn"], encoder.encode_text("number xx")["cross_attn"])


def test_empty_caption_keeps_its_length(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, 1).with_captions([""])
    conditioning = encode(dataset, tmp_path, ToyEncoder()).items[0].load()[1]
    assert conditioning["cross_attn"].shape == (1, 5, TEXT) and not conditioning["cross_attn"].any()


def test_interruption_keeps_what_is_done(tmp_path: Path) -> None:
    def interrupt(progress: EncodeProgress) -> None:
        if progress.done == 2:
            raise InterruptedError

    encoder = ToyEncoder()
    with pytest.raises(InterruptedError):
        encode_dataset(
            folder_of(tmp_path), encoder, tmp_path / "cache", BucketOptions(resolution=64), interrupt
        )
    assert encode(folder_of(tmp_path), tmp_path, encoder).encoded_now == 4


def test_a_file_cut_short_is_encoded_again(tmp_path: Path) -> None:
    encoder = ToyEncoder()
    path = encode(folder_of(tmp_path), tmp_path, encoder).items[0].latent_path
    path.write_bytes(path.read_bytes()[:40])
    assert encode(folder_of(tmp_path), tmp_path, encoder).encoded_now == 1


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    encoded = encode(folder_of(tmp_path), tmp_path, ToyEncoder())
    encoded.items[0].text_path.unlink()
    with pytest.raises(KilnError, match=r"is gone or damaged .*; delete the folder .*cache and queue again"):
        encoded.items[0].load()


def test_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.safefile.save_file", full)
    with pytest.raises(KilnError, match=r"No space left on device.*check free space"):
        encode(folder_of(tmp_path), tmp_path, ToyEncoder())
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_order_shows_everything_and_one_shape_per_batch() -> None:
    shapes, repeats = ["a", "b", "a", "a", "b"], [1, 2, 1, 3, 1]
    order = BatchOrder(shapes, repeats, batch_size=2, seed=0)
    for epoch in range(3):
        numbers = range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch)
        batches = [order.batch(n) for n in numbers]
        assert Counter(s.item for batch in batches for s in batch) == dict(enumerate(repeats))
        assert all(len({shapes[s.item] for s in batch}) == 1 for batch in batches)
        assert {s.epoch for batch in batches for s in batch} == {epoch}
    assert [order.batch(n) for n in range(5)] != [order.batch(n + order.batches_per_epoch) for n in range(5)]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=20),
    st.integers(1, 7),
    st.integers(0, 2**64 - 1),
)
def test_order_loses_nothing(items: list[tuple[str, int]], batch_size: int, seed: int) -> None:
    shapes, repeats = [s for s, _ in items], [r for _, r in items]
    order = BatchOrder(shapes, repeats, batch_size, seed)
    shown = [s.entry for n in range(order.batches_per_epoch) for s in order.batch(n)]
    assert sorted(shown) == list(range(sum(repeats)))


def test_one_bucket_per_batch_and_each_model_once(tmp_path: Path) -> None:
    dataset, encoder = folder_of(tmp_path, 20), ToyEncoder()
    for i in range(0, 20, 2):
        Image.new("RGB", (48, 32), (0, i, 0)).save(tmp_path / "images" / f"{i}.png")
    dataset = scan_folder(tmp_path / "images")
    encode(dataset, tmp_path, encoder)
    assert encoder.rooms == 1 and encoder.calls[:4] == [
        (8, 1, 32, 48, 3),
        (2, 1, 32, 48, 3),
        (8, 1, 32, 32, 3),
        (2, 1, 32, 32, 3),
    ]
    assert all(isinstance(call, str) for call in encoder.calls[4:]), "text and pixels are mixed"
    encode(dataset, tmp_path, encoder)
    assert encoder.rooms == 1, "the device is left alone when there is nothing to do"


def test_large_pictures_come_in_smaller_batches(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (1024, 1024), (i, 0, 0)).save(folder / f"{i}.png")
    encoder = ToyEncoder()
    encode(scan_folder(folder), tmp_path, encoder, resolution=1024)
    assert [call[0] for call in encoder.calls if not isinstance(call, str)] == [4, 2]


def test_stills_and_clips_in_one_run(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    clip(tmp_path / "images" / "clip.mp4", frames=30)
    (tmp_path / "images" / "clip.txt").write_text("a clip")
    encoded = encode(scan_folder(tmp_path / "images"), tmp_path, ToyEncoder(), max_frames=9)
    assert [i.shape for i in encoded.items] == [(4, 1, 4, 4), (4, 1, 4, 4), (4, 3, 6, 8)]
    levels = load_latent(encoded.items[2].latent_path)["latent"][0].mean((1, 2))
    assert levels[1] - levels[0] == pytest.approx(40 / 255, abs=0.02)  # 4 frames apart, 10 a frame
    as_still = encode(scan_folder(tmp_path / "images"), tmp_path, ToyEncoder(), max_frames=1)
    assert as_still.items[2].shape == (4, 1, 6, 8)


def test_variants_are_encoded_once_and_chosen_per_showing(tmp_path: Path) -> None:
    encoder, plain = ToyEncoder(), folder_of(tmp_path)
    augmented = encode(plain.with_augmentation(Augmentation(variants=3)), tmp_path, encoder)
    assert augmented.encoded_now == 3 * 3 + 3 and encoder.images == 9
    more = encode(plain.with_augmentation(Augmentation(variants=5)), tmp_path, encoder)
    assert more.encoded_now == 6, "the first three variants are the same"
    assert more.items[0].latents[:3] == augmented.items[0].latents
    assert (
        encode(plain.with_augmentation(Augmentation(variants=5, seed=1)), tmp_path, encoder).encoded_now == 15
    )
    store, again = ItemStore(more.items, seed=3), ItemStore(more.items, seed=3)
    chosen = [store.choose(SampleDraw(0, epoch, 0))[0] for epoch in range(500)]
    assert chosen == [again.choose(SampleDraw(0, epoch, 0))[0] for epoch in range(500)]
    assert all(60 < count < 140 for count in Counter(chosen).values()) and len(set(chosen)) == 5
    other = ItemStore(more.items, seed=4)
    assert chosen != [other.choose(SampleDraw(0, epoch, 0))[0] for epoch in range(500)]


def test_captions_are_dropped_and_shuffled_as_promised(tmp_path: Path) -> None:
    variation = CaptionVariation(dropout=0.2, shuffle_tags=True, keep_first=1, variants=4)
    dataset = folder_of(tmp_path, 1).with_captions(["zork, a, b, c, d"]).with_caption_variation(variation)
    encoder = ToyEncoder()
    encoded = encode(dataset, tmp_path, encoder)
    (item,) = encoded.items
    assert encoder.texts == 5 and len(item.texts) == 4
    store = ItemStore(encoded.items, seed=1)
    counts = Counter(store.choose(SampleDraw(0, epoch, 0))[1] for epoch in range(2000))
    assert 340 < counts.pop(item.empty_text) < 460
    assert all(320 < count < 480 for count in counts.values()) and len(counts) == 4
    assert encode(dataset, tmp_path, encoder).fingerprint == encoded.fingerprint
    stronger = dataset.with_caption_variation(CaptionVariation(dropout=0.5, shuffle_tags=True, variants=4))
    assert encode(stronger, tmp_path, encoder).fingerprint != encoded.fingerprint


def test_validation_items_stay_as_they_are(tmp_path: Path) -> None:
    folder_of(tmp_path, 4)
    dataset = scan_folder(tmp_path / "images", ScanOptions(validation_share=0.25))
    dataset = dataset.with_augmentation(Augmentation()).with_caption_variation(CaptionVariation(dropout=1.0))
    encoded = encode(dataset, tmp_path, ToyEncoder())
    (held,) = [n for n, i in enumerate(encoded.items) if i.role == "validation"]
    assert len(encoded.items[held].latents) == 1 and encoded.items[held].empty_text is None
    store = ItemStore(encoded.items)
    assert store.choose(SampleDraw(held, 5, 0)) == (
        encoded.items[held].latent_path,
        encoded.items[held].text_path,
    )


def test_masks_reach_the_batch_at_latent_size(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    half = Image.new("L", (32, 32), 0)
    half.paste(255, (16, 0, 32, 32))
    (tmp_path / "images" / "masks").mkdir()
    half.save(tmp_path / "images" / "masks" / "0.png")
    encoder = ToyEncoder()
    encoded = encode(scan_folder(tmp_path / "images"), tmp_path, encoder)
    batch = ItemStore(encoded.items).load([SampleDraw(0, 0, 0), SampleDraw(1, 0, 1)])
    assert batch.mask is not None and batch.mask.shape == (2, 1, 1, 4, 4)
    assert "latents 4x1x4x4 (2)\n1 with a loss mask" in encoded.describe()
    assert batch.mask[0, 0, 0].tolist() == [[0, 0, 1, 1]] * 4 and bool((batch.mask[1] == 1).all())
    assert ItemStore(encoded.items).load([SampleDraw(1, 0, 1)]).mask is None
    half.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "images" / "masks" / "0.png")
    assert encode(scan_folder(tmp_path / "images"), tmp_path, encoder).encoded_now == 1, (
        "a new mask, one latent"
    )
    unmasked = encode(scan_folder(tmp_path / "images", ScanOptions(masks=False)), tmp_path, encoder)
    assert ItemStore(unmasked.items).load([SampleDraw(0, 0, 0)]).mask is None


def test_store_reads_beyond_its_limit(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    keeping, reading = ItemStore(encoded.items), ItemStore(encoded.items, limit_bytes=0)
    for indices in ([0, 1], [1, 0]):
        showings = [SampleDraw(i, 0, i) for i in indices]
        assert torch.equal(keeping.load(showings).latents, reading.load(showings).latents)
    assert keeping.reader.kept and not reading.reader.kept


def test_an_item_survives_json(tmp_path: Path) -> None:
    """Run files list items, with all their variants."""
    item = dataclasses.replace(
        make_encoded(tmp_path).items[0],
        more_latents=(tmp_path / "a", tmp_path / "b"),
        more_texts=(tmp_path / "c",),
        empty_text=tmp_path / "d",
        caption_dropout=0.2,
        role="regularisation",
        sizes=(PixelSize(640, 480, 3, 0, 64, 48),) * 3,
        frame_rate=12.5,
    )
    assert EncodedItem.from_dict(json.loads(json.dumps(item.to_dict()))) == item
    plain = make_encoded(tmp_path).items[0]
    assert EncodedItem.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain
    assert len(item.files) == 6


def test_a_caption_of_an_earlier_version_is_completed(tmp_path: Path) -> None:
    """Its address stays, so that runs can be resumed; so do its tensors, to the bit; what it lacked is added."""

    class Pooling(ToyEncoder):
        def encode_text(self, caption: str) -> ItemConditioning:
            return {
                **super().encode_text(caption),
                "pooled_output": None,
                "ids": torch.ones(7, dtype=torch.int64),
            }

    dataset = folder_of(tmp_path)
    first = encode(dataset, tmp_path, Pooling())
    save_file(
        {"cross_attn": torch.full((2, TEXT), 0.25), "length": torch.tensor([5])}, first.items[0].text_path
    )
    encoder = Pooling()
    again = encode(dataset, tmp_path, encoder)
    assert (encoder.images, encoder.texts, again.encoded_now) == (0, 1, 1)
    assert again.fingerprint == first.fingerprint
    found = again.items[0].load()[1]
    assert found["pooled_output"] is None and found["ids"].shape == (7,)
    assert found["cross_attn"][0, :, 0].tolist() == [0.25, 0.25, 0, 0, 0]
    assert encode(dataset, tmp_path, encoder).encoded_now == 0


def test_sizes_and_frame_rates_are_noted(tmp_path: Path) -> None:
    (folder := tmp_path / "images").mkdir()
    Image.new("RGB", (200, 100)).save(folder / "wide.png")
    clip(folder / "clip.mp4", frames=20, size=(64, 48))
    wide, moving = sorted(
        encode(scan_folder(folder), tmp_path, ToyEncoder()).items, key=lambda i: i.frame_rate
    )
    (size,) = wide.sizes
    assert (size.width, size.height, wide.frame_rate) == (200, 100, 0.0)
    assert (size.target_width, size.target_height) == (80, 48)  # 200 x 100 scaled to 96 x 48
    assert (size.crop_left, size.crop_top) == (8, 0)
    assert 0 < moving.frame_rate <= 16
    (batch_item,) = ItemStore([wide]).load([SampleDraw(0, 0, 0)]).items
    assert batch_item.size == size and batch_item.frame_rate == 0


def test_the_crop_of_a_variant_is_where_its_pixels_come_from(tmp_path: Path) -> None:
    """Pixels that say where they are: red the column, green the row."""
    rows, columns = np.mgrid[0:128, 0:256]
    picture = np.stack([columns, rows * 2, rows * 0], -1).astype(np.uint8)
    (folder := tmp_path / "images").mkdir()
    Image.fromarray(picture).save(folder / "a.png")
    look = Augmentation(
        crop_min_scale=0.3, color_jitter=0.0, noise_max=0.0, noise_min=0.0, horizontal_flip=0.5
    )
    (item,) = scan_folder(folder).with_augmentation(look).items
    bucket, flips = bucket_of(item, BucketOptions(resolution=64)), 0
    for variant in range(8):
        pixels = load_pixels(item, bucket, 0.0, variant).frames[0] * 255
        left, top = crop_offset(item, bucket, variant)
        first, last = pixels[:, 1, 0].mean(), pixels[:, -2, 0].mean()
        scale = (bucket.width - 3) / abs(last - first)  # training pixels per original pixel
        cut = ((255 - first if first > last else first) + 0.5) * scale - 1.5
        assert abs(left - cut) < 2.0 and abs(top - ((pixels[1, :, 1].mean() / 2 + 0.5) * scale - 1.5)) < 2.0
        flips += bool(first > last)
    assert 0 < flips < 8


def test_progress_names_the_item_the_bytes_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("trainer.dataset.encode_progress.time.monotonic", lambda: next(clock))
    dataset, said = folder_of(tmp_path, 18), []
    encode_dataset(dataset, ToyEncoder(), tmp_path / "cache", BucketOptions(resolution=64), said.append)
    assert (said[0].done, said[0].total, said[0].sentence()) == (0, 36, "")
    first = said[1].sentence()
    assert first == "encoding the image 0.png: 0 of 36 files, 0.0 MB written" and said[1].seconds_left is None
    written = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.safetensors"))
    assert said[-1].done == 36 and said[-1].bytes_written == written
    assert [s.name for s in said if s.kind == "image"][-1] == "17.png"
    (text,) = {s.sentence().partition(":")[0] for s in said if s.name == "'number xxxx'"}
    assert text == "encoding the caption 'number xxxx'"
    timed = [s for s in said if s.seconds_left]
    assert {s.kind for s in timed} == {"image", "caption"} and "left for this part" in timed[0].sentence()
    again = []
    encode_dataset(dataset, ToyEncoder(), tmp_path / "cache", BucketOptions(resolution=64), again.append)
    assert [s.done for s in again] == [36]


def test_the_time_left_is_that_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("trainer.dataset.encode_progress.time.monotonic", lambda: now[0])
    said: list[EncodeProgress] = []
    tracker = Tracker(0, 4, said.append)
    tracker.begin("image", 100)
    now[0] = 50  # the model is loaded meanwhile
    tracker.wrote(7, 10, "a")
    tracker.batch_done()
    assert said[-1].seconds_left is None
    now[0] = 60
    tracker.wrote(7, 20, "b")
    assert said[-1].seconds_left == pytest.approx(10 / 20 * 70) and "about 35 s left" in said[-1].sentence()
    tracker.begin("caption", 2)
    tracker.now("c")
    assert said[-1].seconds_left is None and said[-1].bytes_written == 14
