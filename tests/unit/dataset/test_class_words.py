"""Captions with a class in the trigger word's place: made, encoded, drawn and listed with their caption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.config import TrainConfig
from trainer.dataset.batches import ItemStore, SampleDraw
from trainer.dataset.buckets import BucketOptions
from trainer.dataset.caption_variants import CaptionVariation
from trainer.dataset.class_words import ClassWords, read_class_words
from trainer.dataset.encode import encode_dataset
from trainer.dataset.encoded import EncodedDataset, EncodedItem
from trainer.dataset.items import Dataset
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.dataset.template import lead_with
from trainer.errors import KilnError
from trainer.runs.runfile import RunFile, read_dataset, write_run_file

from ..toy import ToyEncoder


@pytest.mark.parametrize(
    ("trigger", "words", "caption", "expected"),
    [
        ("zorb", "circle", "a red zorb, ZORB!", ["a red circle, circle!"]),
        ("zorb", "circle | square", "zorb", ["circle", "square"]),
        ("ohwx", "woman", "ohwx woman in a car", ["woman in a car"]),  # not "woman woman"
        ("ohwx", "woman", "ohwx womanly", ["woman womanly"]),
        ("zorb", "circle", "zorbs and a zorb", ["zorbs and a circle"]),
        ("zorb", "circle", "a red square", []),
        ("a.b", r"x\1", "a.b and aXb", [r"x\1 and aXb"]),
        (
            "\u5c0f\u660e",
            "\u7537\u5b69",
            "\u5c0f\u660e\u5728\u516c\u56ed",
            ["\u7537\u5b69\u5728\u516c\u56ed"],
        ),
    ],
)
def test_the_class_stands_where_the_trigger_word_stood(
    trigger: str, words: str, caption: str, expected: list[str]
) -> None:
    found = read_class_words(words, trigger)
    assert found is not None and found.captions(caption) == expected


LATIN, CHINESE = "bcd", "\u7537\u5973\u5b69\u7a7f"
OTHERS = "xyz \u5728\u516c\u56ed,\uff0c"  # what stands around, of other letters
WORDS = st.text(LATIN, min_size=2, max_size=4) | st.text(CHINESE, min_size=2, max_size=3)
TRIGGERS = st.sampled_from(["zorb", "\u5c0f\u660e", "z1\u660e", "\u660ez1"])


def is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


def beside(left: str, right: str, spaces: str) -> str:
    """Two words in a caption: with a space where their letters need one."""
    need = left and right and is_latin(left[-1]) and is_latin(right[0])
    return left + (spaces or (" " if need else "")) + right


@settings(deadline=None)
@given(
    TRIGGERS,
    st.lists(WORDS, min_size=1, max_size=3, unique=True),
    st.text(OTHERS, max_size=8),
    st.text(OTHERS, max_size=8),
    st.sampled_from(["alone", "before", "behind", "both"]),
    st.sampled_from(["", " ", "\u3000"]),
)
def test_a_class_beside_the_trigger_word_is_not_doubled(
    trigger: str, words: list[str], before: str, after: str, where: str, spaces: str
) -> None:
    """In Latin letters, in Chinese and in both at once; what stands around stays as it is."""
    middle = trigger
    if where in ("before", "both"):
        middle = beside(words[0], middle, spaces)
    if where in ("behind", "both"):
        middle = beside(middle, words[0], spaces)
    before = before + (" " if before and is_latin(before[-1]) and is_latin(middle[0]) else "")
    after = (" " if after and is_latin(after[0]) and is_latin(middle[-1]) else "") + after
    found = read_class_words("|".join(words), trigger)
    assert found is not None
    assert found.captions(before + middle + after) == [before + word + after for word in words]


def test_in_chinese_a_word_needs_no_space_around_it() -> None:
    ming, boy, park = "\u5c0f\u660e", "\u7537\u5b69", "\u5728\u516c\u56ed"
    found = read_class_words("boy", ming)
    assert found is not None and found.captions(f"{ming}boy{park}") == [f"boy{park}"]
    assert lead_with(ming, f"{boy}{ming}{park}") == f"{boy}{ming}{park}", "it stands there already"
    assert lead_with("zorb", f"zorb{park}") == f"zorb{park}"
    assert lead_with("zorb", "zorbs") == "zorb, zorbs"
    with pytest.raises(KilnError, match="holds the trigger word itself"):
        read_class_words(ming + boy, ming)


def test_words_are_read_and_refused() -> None:
    assert read_class_words("  ", "zorb") is None
    assert read_class_words(" a | b\uff5ca |", " zorb ") == ClassWords("zorb", ("a", "b"))
    with pytest.raises(KilnError, match="class_word is 'circle' and trigger_word is empty"):
        read_class_words("circle", " ")
    with pytest.raises(KilnError, match="class_word is 'Zorb shape' and holds the trigger word itself"):
        read_class_words("circle | Zorb shape", "zorb")


def folder_of(tmp_path: Path, captions: list[str]) -> Dataset:
    folder = tmp_path / "images"
    folder.mkdir(parents=True)
    for i, caption in enumerate(captions):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return scan_folder(folder, ScanOptions())


def encode(dataset: Dataset, tmp_path: Path) -> EncodedDataset:
    return encode_dataset(dataset, ToyEncoder(), tmp_path / "cache", BucketOptions(resolution=32))


def test_only_captions_with_the_trigger_word_have_one(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, ["a zorb", "a tree", "the zorb"])
    plain = encode(dataset, tmp_path)
    kept = encode(dataset.with_class_words(ClassWords("zorb", ("circle",))), tmp_path)
    assert [len(i.class_texts) for i in kept.items] == [1, 0, 1] and kept.class_word == "circle"
    assert kept.encoded_now == 2, "the captions themselves have the addresses that they had"
    assert kept.fingerprint != plain.fingerprint and "2 with a class" in kept.describe()
    assert "2 with a class" not in plain.describe() and not plain.class_word
    assert all(path.is_file() for item in kept.items for path in item.files)
    (alike,) = encode(folder_of(tmp_path / "b", ["a circle"]), tmp_path).items
    assert kept.items[0].class_texts == (alike.text_path,), "encoded as that caption would be"


def test_each_order_of_tags_has_its_own_and_what_is_drawn_belongs_together(tmp_path: Path) -> None:
    variation = CaptionVariation(dropout=0.3, shuffle_tags=True, keep_first=0, variants=4)
    dataset = folder_of(tmp_path, ["zorb, aa, bbb, cccc"]).with_caption_variation(variation)
    encoded = encode(dataset.with_class_words(ClassWords("zorb", ("x", "yy"))), tmp_path)
    (item,) = encoded.items
    assert len(item.texts) == 4 and len(item.class_texts) == 8 and item.empty_text not in item.class_texts
    store, plain = ItemStore([item], seed=2), ItemStore(encode(dataset, tmp_path).items, seed=2)
    drawn = set()
    for epoch in range(200):
        draw = SampleDraw(0, epoch, 0)
        assert store.choose(draw) == plain.choose(draw), "a run without classes draws what it drew"
        text, of_class = store.choose(draw)[1], store.class_text(draw)
        assert of_class is not None and plain.class_text(draw) is None
        place = item.class_texts.index(of_class)
        assert text in (item.empty_text, item.texts[place // 2])
        drawn.add(place)
    assert drawn == set(range(8))
    (loaded,) = store.load([SampleDraw(0, 0, 0)]).items
    assert loaded.of_class is not None and loaded.of_class.keys() == loaded.conditioning.keys()


def test_held_out_items_have_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a zorb"] * 4).items[0].path.parent
    dataset = scan_folder(folder, ScanOptions(validation_share=0.25))
    encoded = encode(dataset.with_class_words(ClassWords("zorb", ("circle",))), tmp_path)
    assert {i.role: len(i.class_texts) for i in encoded.items} == {"subject": 1, "validation": 0}


def test_a_run_file_holds_them(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, ["a zorb", "b zorb"]).with_class_words(
        ClassWords("zorb", ("circle", "box"))
    )
    encoded = encode(dataset, tmp_path)
    write_run_file(tmp_path, RunFile(model={"loader": ""}, config=TrainConfig()), encoded)
    again = read_dataset(tmp_path / "dataset.json")
    assert again.fingerprint == encoded.fingerprint and again.class_word == "circle | box"
    values = json.loads(json.dumps(encoded.items[0].to_dict()))
    assert EncodedItem.from_dict(values) == encoded.items[0]
    values["more_texts"] = [values["text_path"], values["text_path"]]
    with pytest.raises(TypeError, match="class_texts"):
        EncodedItem.from_dict(values)
