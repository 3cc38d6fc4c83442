"""Files read ahead on a thread: the same tensors, read before they are asked for, and captions kept without padding."""

from __future__ import annotations

import dataclasses
import gc
import threading
from pathlib import Path

import pytest
import torch

from trainer.conditioning import equal
from trainer.dataset import read_ahead
from trainer.dataset.batches import ItemStore, SampleDraw
from trainer.dataset.encoded import EncodedFile, load_text, read_encoded, write_conditioning
from trainer.errors import KilnError
from trainer.loop.train import train

from ..toy import ToyDenoiser, make_config, make_encoded


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Which thread was the first to read each file, filled in as files are read."""
    found: dict[Path, str] = {}

    def read(path: Path) -> EncodedFile:
        found.setdefault(path, threading.current_thread().name)
        return read_encoded(path)

    monkeypatch.setattr(read_ahead, "read_encoded", read)
    return found


def draws(*items: int) -> list[SampleDraw]:
    return [SampleDraw(i, 0, i) for i in items]


def test_what_is_read_ahead_is_what_is_loaded(tmp_path: Path, readers: dict[Path, str]) -> None:
    encoded = make_encoded(tmp_path, count=4)
    ahead, plain = (ItemStore(encoded.items, limit_bytes=0) for _ in range(2))
    ahead.read_ahead(draws(2, 1))
    first, second = ahead.load(draws(1, 2)), plain.load(draws(1, 2))
    assert torch.equal(first.latents, second.latents)
    assert all(equal(a.conditioning, b.conditioning) for a, b in zip(first.items, second.items, strict=True))
    readers.clear()
    ahead.read_ahead(draws(0, 3))
    ahead.read_ahead(draws(3))
    ahead.load(draws(3))
    mine = {p: t for p, t in readers.items() if p in encoded.items[3].files}
    assert mine and all(t.startswith("lora-kiln-reader") for t in mine.values())


def test_a_file_that_is_gone_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path, count=2)
    store = ItemStore(encoded.items)
    encoded.items[1].latent_path.unlink()
    store.read_ahead(draws(1, 0))
    store.load(draws(0))
    with pytest.raises(KilnError, match=r"latent1\.safetensors is gone or damaged"):
        store.load(draws(1))


def test_captions_are_kept_without_their_padding(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path, count=1)
    (item,) = encoded.items
    padded = torch.zeros(1, 512, 64)
    padded[:, :7] = torch.randn(1, 7, 64)
    write_conditioning(item.text_path, {"cross_attn": padded})
    store = ItemStore(encoded.items)
    (loaded,) = store.load(draws(0)).items
    assert torch.equal(loaded.conditioning["cross_attn"], padded)
    assert store.reader.kept_bytes < 7 * 64 * 4 + 100, "not the 131,072 bytes of all rows"
    (again,) = store.load(draws(0)).items
    assert torch.equal(again.conditioning["cross_attn"], padded)


def test_a_run_reads_each_step_before_it_needs_it(
    tmp_path: Path, readers: dict[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit every step reads its items; only those of the first two are read by the run itself."""
    encoded = make_encoded(tmp_path, count=24)
    config = make_config(steps=12, batch_size=2)
    kept = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "kept")
    readers.clear()
    original = ItemStore.__init__
    monkeypatch.setattr(ItemStore, "__init__", lambda self, items, seed=0: original(self, items, seed, 0))
    result = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "run")
    assert result.losses == kept.losses
    assert all(torch.equal(result.adapter[name], value) for name, value in kept.adapter.items())
    alone = [p for p, thread in readers.items() if not thread.startswith("lora-kiln-reader")]
    assert len(readers) == 48 and len(alone) == 2 * 2 * 2


def test_the_thread_ends_with_its_store(tmp_path: Path) -> None:
    store = ItemStore(make_encoded(tmp_path, count=2).items)
    store.read_ahead(draws(0, 1))
    store.load(draws(0, 1))
    assert store.reader._executor is not None
    threads = list(store.reader._executor._threads)
    del store
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_tensor_that_was_read_does_not_keep_its_file(tmp_path: Path) -> None:
    item = dataclasses.replace(make_encoded(tmp_path, count=1).items[0])
    latent, text = item.load()
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert str(tmp_path) not in maps.read_text()
    write_conditioning(item.text_path, {"cross_attn": torch.zeros(1, 3, 6)})
    assert (
        bool(text["cross_attn"].any())
        and latent.numel()
        and not bool(load_text(item.text_path)["cross_attn"].any())
    )
