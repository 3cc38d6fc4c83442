"""Mixing sets and holding items out: proportions over an epoch, exactly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media import picture
from trainer.dataset.augment import Augmentation
from trainer.dataset.batches import BatchOrder
from trainer.dataset.combine import Part, combine, whole_repeats
from trainer.dataset.facts import Facts
from trainer.dataset.items import Dataset, Item
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.errors import KilnError


def some(count: int, name: str, repeats: int = 1) -> Dataset:
    facts = [Facts(width=64, height=64, sha256=f"{name}{i:02}") for i in range(count)]
    return Dataset(tuple(Item(Path(f"{name}{i}.png"), f, repeats=repeats) for i, f in enumerate(facts)))


def test_weights_and_repeats_come_out_over_an_epoch() -> None:
    mixed = combine(
        [Part(some(4, "a"), 1.0, "subject"), Part(some(6, "b", repeats=2), 0.5, "regularisation")], 0.3
    )
    order = BatchOrder([1] * 10, [i.repeats for i in mixed.items], batch_size=3, seed=5)
    shown = Counter(s.item for n in range(order.batches_per_epoch) for s in order.batch(n))
    assert shown == {**dict.fromkeys(range(4), 2), **dict.fromkeys(range(4, 10), 2)}
    assert [i.role for i in mixed.items] == ["subject"] * 4 + ["regularisation"] * 6
    assert {i.loss_weight for i in mixed.items[4:]} == {0.3} and mixed.items[0].loss_weight == 1
    assert mixed.proportions() == "20 samples in an epoch: 40% subject, 60% regularisation"


def test_validation_is_out_of_the_epoch_and_unchanged() -> None:
    held = some(3, "v", repeats=4).with_augmentation(Augmentation())
    mixed = combine([Part(some(2, "a"), 1.0, "subject"), Part(held, 5.0, "validation")])
    assert all(i.role == "validation" and i.repeats == 1 and i.augmentation is None for i in mixed.items[2:])
    with pytest.raises(KilnError, match="give one set the role subject"):
        combine([Part(held, 1.0, "validation")])


def test_chained_mixes_keep_roles_and_loss_weights() -> None:
    first = combine([Part(some(2, "a"), 1.0, "subject"), Part(some(2, "r"), 1.0, "regularisation")], 0.5)
    second = combine([Part(first, 1.0, "subject"), Part(some(1, "b"), 1.0, "subject")], 0.25)
    assert [i.role for i in second.items] == ["subject"] * 2 + ["regularisation"] * 2 + ["subject"]
    assert [i.loss_weight for i in second.items] == [1, 1, 0.5, 0.5, 1]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=4))
def test_whole_repeats_are_in_proportion(tenths: list[int]) -> None:
    weights = [t / 10 for t in tenths]
    repeats = whole_repeats(weights)
    for weight, repeat in zip(weights, repeats, strict=True):
        assert repeat * weights[0] == pytest.approx(weight * repeats[0])
    assert all(r >= 1 for r in repeats)


def test_weights_too_small() -> None:
    assert whole_repeats([1, 0.5]) == [2, 1] and whole_repeats([3.0, 3.0]) == [1, 1]
    with pytest.raises(KilnError, match=r"A weight is 0.0; use 0.1 or more"):
        whole_repeats([1.0, 0.0])


def folder(tmp_path: Path, count: int = 20) -> Path:
    for i in range(count):
        picture(tmp_path / "set" / f"{i}.png", (32, 32), f"rgb({i * 9}, 0, 0)")
    return tmp_path / "set"


def test_a_share_is_held_out_and_stays_when_files_are_added(tmp_path: Path) -> None:
    place = folder(tmp_path)
    options = ScanOptions(validation_share=0.2, repeats=3)
    held = {i.path for i in scan_folder(place, options).items if i.role == "validation"}
    assert len(held) == 4
    assert held == {i.path for i in scan_folder(place, options).items if i.role == "validation"}
    picture(place / "new.png", (32, 32), "blue")
    after = {i.path for i in scan_folder(place, options).items if i.role == "validation"}
    assert len(held & after) >= 3
    assert {i.repeats for i in scan_folder(place, options).items if i.role == "validation"} == {1}


def test_equal_files_stay_on_one_side(tmp_path: Path) -> None:
    place = folder(tmp_path, 4)
    for i in range(4):
        (place / f"copy{i}.png").write_bytes((place / f"{i}.png").read_bytes())
    items = scan_folder(place, ScanOptions(validation_share=0.25)).items
    sides = {i.facts.sha256: set[str]() for i in items}
    for item in items:
        sides[item.facts.sha256].add(item.role)
    assert all(len(roles) == 1 for roles in sides.values())
    assert sum(i.role == "validation" for i in items) == 2


def test_a_named_folder_is_held_out(tmp_path: Path) -> None:
    place = folder(tmp_path, 3)
    picture(place / "held" / "v.png")
    picture(place / "other" / "o.png")
    items = scan_folder(place, ScanOptions(validation_folder="held")).items
    assert [(i.path.name, i.role) for i in items if i.role == "validation"] == [("v.png", "validation")]
    assert len(items) == 4
    with pytest.raises(KilnError, match="validation folder 'nowhere' holds no usable image"):
        scan_folder(place, ScanOptions(validation_folder="nowhere"))


def test_something_is_left_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="none trained on"):
        scan_folder(folder(tmp_path, 1), ScanOptions(validation_share=0.5))
