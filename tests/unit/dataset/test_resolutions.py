"""Items at several resolutions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.toy import ToyEncoder
from trainer.dataset.batches import steps_of
from trainer.dataset.buckets import BucketOptions, bucket_of, plan
from trainer.dataset.encode import encode_dataset
from trainer.dataset.items import Dataset
from trainer.dataset.resolutions import at_resolutions, read_resolutions
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.errors import KilnError

OPTIONS = BucketOptions(resolution=64)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Pictures of 256, 100 and 64 pixels."""
    (tmp_path / "set").mkdir()
    for side, colour in ((256, "red"), (100, "blue"), (64, "green")):
        Image.new("RGB", (side, side), colour).save(tmp_path / "set" / f"{side}.png")
    return scan_folder(tmp_path / "set")


def sizes(dataset: Dataset) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for item in dataset.items:
        found.setdefault(item.path.name, []).append(bucket_of(item, OPTIONS).width)
    return found


def test_each_at_every_size_that_it_fills_and_none_enlarged(dataset: Dataset, tmp_path: Path) -> None:
    several = at_resolutions(dataset, OPTIONS, read_resolutions("96, 128 ,256"))
    assert sizes(several) == {"256.png": [64, 96, 128, 256], "100.png": [64, 96], "64.png": [64]}
    encoded = encode_dataset(several, ToyEncoder(), tmp_path / "kept", OPTIONS)
    assert sorted(i.shape[-1] for i in encoded.items) == [8, 8, 8, 12, 12, 16, 32]
    assert "96x96: 2 items" in plan(several, OPTIONS).describe()


def test_max_upscale_is_for_the_first_resolution_alone(dataset: Dataset) -> None:
    """A picture of 48 pixels is enlarged to 64 as asked, to no further size, and shrunk to a smaller one."""
    enlarging = BucketOptions(resolution=64, max_upscale=4.0)
    small = dataset.items[0]
    small = replace(small, facts=replace(small.facts, width=48, height=48))
    several = at_resolutions(replace(dataset, items=(small,)), enlarging, [32, 96, 256])
    assert [bucket_of(item, enlarging).width for item in several.items] == [64, 32]
    several = at_resolutions(dataset, enlarging, [96, 256])
    for item in several.items:
        assert bucket_of(item, enlarging).width <= item.facts.width


def test_without_further_ones_nothing_changes(dataset: Dataset, tmp_path: Path) -> None:
    assert at_resolutions(dataset, OPTIONS, read_resolutions("")) is dataset
    plain = encode_dataset(dataset, ToyEncoder(), tmp_path / "kept", OPTIONS)
    several = encode_dataset(at_resolutions(dataset, OPTIONS, [96]), ToyEncoder(), tmp_path / "kept", OPTIONS)
    assert several.encoded_now == 2, "those at the first resolution are found in the cache"
    assert {i.latent_path for i in plain.items} < {i.latent_path for i in several.items}


def test_what_is_held_out_has_one_size(tmp_path: Path, dataset: Dataset) -> None:
    held = scan_folder(tmp_path / "set", ScanOptions(validation_share=0.34))
    several = at_resolutions(held, OPTIONS, [32, 96])
    assert sum(i.role == "validation" for i in several.items) == sum(
        i.role == "validation" for i in held.items
    )


@pytest.mark.parametrize("text", ["768x1024", "15", "99999", "-64", "a" * 5000, "64 " * 9])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(KilnError, match="more_resolutions") as said:
        read_resolutions(text)
    assert len(str(said.value)) < 300


@pytest.mark.parametrize(
    ("epochs", "batch", "accumulation", "steps"), [(1, 1, 1, 3), (10, 1, 1, 30), (10, 2, 1, 20), (1, 1, 2, 2)]
)
def test_epochs_as_steps(
    dataset: Dataset, tmp_path: Path, epochs: int, batch: int, accumulation: int, steps: int
) -> None:
    encoded = encode_dataset(dataset, ToyEncoder(), tmp_path / "kept", OPTIONS)
    assert steps_of(epochs, encoded.items, batch, accumulation) == steps
