"""The cache of encoded items, and the order in which they are shown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.dataset.batches import BatchOrder, ItemStore, Showing, stack_conditioning
from trainer.dataset.encoded import EncodedDataset, encode_dataset
from trainer.dataset.items import Dataset, scan_folder
from trainer.errors import KilnError

from .toy import TEXT, ToyEncoder, make_encoded


def folder_of(tmp_path: Path, count: int = 3) -> Dataset:
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (32, 32), (i * 20, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {'x' * i}")
    return scan_folder(folder)


def encode(dataset: Dataset, tmp_path: Path, encoder: ToyEncoder, resolution: int = 64) -> EncodedDataset:
    return encode_dataset(dataset, encoder, tmp_path / "cache", resolution)


def test_nothing_is_encoded_twice(tmp_path: Path) -> None:
    dataset, encoder = folder_of(tmp_path), ToyEncoder()
    first = encode(dataset, tmp_path, encoder)
    assert (encoder.images, encoder.texts, first.encoded_now) == (3, 3, 6)
    again = encode(dataset, tmp_path, encoder)
    assert (encoder.images, encoder.texts, again.encoded_now) == (3, 3, 0)
    assert again.items == first.items and again.fingerprint == first.fingerprint
    assert first.describe() == "3 items, latents: 3 of 4x1x4x4\n6 of 6 encoded now"


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
    assert conditioning["cross_attn"].shape == (5, TEXT) and not conditioning["cross_attn"].any()


def test_interruption_keeps_what_is_done(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise InterruptedError

    encoder = ToyEncoder()
    with pytest.raises(InterruptedError):
        encode_dataset(folder_of(tmp_path), encoder, tmp_path / "cache", 64, interrupt)
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


def test_store_reads_beyond_its_limit(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path)
    keeping, reading = ItemStore(encoded.items), ItemStore(encoded.items, limit_bytes=0)
    for indices in ([0, 1], [1, 0]):
        showings = [Showing(i, 0, i) for i in indices]
        assert torch.equal(keeping.load(showings).latents, reading.load(showings).latents)
    assert keeping._kept and not reading._kept


def test_captions_of_different_lengths_are_padded() -> None:
    stacked = stack_conditioning([{"cross_attn": torch.ones(2, 3)}, {"cross_attn": torch.ones(4, 3)}])
    assert stacked["cross_attn"].shape == (2, 4, 3) and not stacked["cross_attn"][0, 2:].any()
    with pytest.raises(KilnError, match="use one text encoder"):
        stack_conditioning(
            [{"cross_attn": torch.ones(2, 3)}, {"cross_attn": torch.ones(2, 3), "pooled": torch.ones(3)}]
        )
