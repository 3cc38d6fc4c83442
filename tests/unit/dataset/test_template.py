"""Caption templates: no dangling comma, no unfilled brace, no silent surprise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.facts import Facts
from trainer.dataset.items import Dataset, Item
from trainer.dataset.template import caption_dataset, fill, parse_values
from trainer.errors import KilnError

GUIDE = "{subject} {action}, {art_style} style, {lighting}, {composition}, detailed {texture}, color scheme: {colors}"
FIELDS = {
    "subject": "cyberpunk girl",
    "action": "standing in a neon street",
    "art_style": "futurist",
    "lighting": "neon light and fog",
    "composition": "centred composition",
    "texture": "leather and metal texture",
    "colors": "purple/blue/fluorescent green",
}


def dataset(*captions: str) -> Dataset:
    facts = Facts(width=8, height=8)
    items = (Item(Path(f"set/img{i}.png"), facts, c, folder="set") for i, c in enumerate(captions))
    return Dataset(tuple(items))


def test_the_guides_example() -> None:
    assert fill(GUIDE, FIELDS) == (
        "cyberpunk girl standing in a neon street, futurist style, neon light and fog, centred composition, "
        "detailed leather and metal texture, color scheme: purple/blue/fluorescent green"
    )


def test_a_clause_without_its_value_goes_whole() -> None:
    fields = {**FIELDS, "lighting": "", "colors": "", "subject": ""}
    assert fill(GUIDE, fields) == "futurist style, centred composition, detailed leather and metal texture"


def test_missing_error_and_keep() -> None:
    with pytest.raises(KilnError, match=r"needs \{a\}, which is empty"):
        fill("x {a}", {"a": ""}, "error")
    assert fill("x {a}, y", {"a": ""}, "keep") == "x {a}, y"


def test_brackets_and_commas_in_values() -> None:
    assert (
        fill("[name] full body, by [artist]", {"name": "Ann, the brave", "artist": "X"})
        == "Ann, the brave full body, by X"
    )


def test_unknown_placeholder_names_itself_and_what_exists() -> None:
    with pytest.raises(
        KilnError, match=r"uses \{colour\}, but there is no such field; known are caption, name"
    ):
        fill("a {colour}", {"caption": "", "name": "x"})


def test_open_brace() -> None:
    with pytest.raises(KilnError, match=r"brace without its partner in 'b \{name'"):
        fill("a, b {name", {"name": "x"})


def test_values() -> None:
    assert parse_values("# note\nlight: soft | hard\n\ntime: 10:30") == {
        "light": ["soft", "hard"],
        "time": ["10:30"],
    }
    with pytest.raises(KilnError, match="Line 2 of values is 'oops'; write it as name: value"):
        parse_values("a: b\noops")


def test_alternatives_are_drawn_per_image_from_the_seed() -> None:
    many = dataset(*[""] * 300)

    def draw(seed: int) -> list[str]:
        return caption_dataset(many, "{light}", "light: soft | hard | none", "", "drop clause", seed)

    assert draw(1) == draw(1) != draw(2)
    assert all(70 < draw(1).count(option) < 130 for option in ("soft", "hard", "none"))


def test_trigger_word_leads_once() -> None:
    captions = caption_dataset(dataset("a cat", "zork on a mat", ""), "", "", "zork", "drop clause", 0)
    assert captions == ["zork, a cat", "zork on a mat", "zork"]
    captions = caption_dataset(dataset("a Zork", "zorking"), "", "", "zork", "drop clause", 0)
    assert captions == ["a Zork", "zork, zorking"]


def test_a_new_image_does_not_change_the_others_captions() -> None:
    values = "light: " + " | ".join("abcdefgh")
    few, more = dataset("", "", ""), dataset("", "", "", "")
    draw = [caption_dataset(d, "{light}", values, "", "error", 3) for d in (few, more)]
    assert draw[1][:3] == draw[0]


def test_full_width_signs_of_chinese_keyboards() -> None:
    assert parse_values("light\uff1asoft \uff5c hard") == {"light": ["soft", "hard"]}
    assert fill("{a}\uff0c {b}\uff0cc", {"a": "x", "b": ""}) == "x, c"


def test_the_images_own_fields() -> None:
    assert caption_dataset(dataset("a cat"), "{caption} [name] {folder}", "", "", "error", 0) == [
        "a cat img0 set"
    ]


def test_fields_of_sidecars_win_over_values_and_may_be_missing() -> None:
    plain = dataset("a", "b", "c")
    fields = [(("light", "neon"), ("mood", "calm")), (("light", ""),), ()]
    given = Dataset(tuple(replace(i, fields=f) for i, f in zip(plain.items, fields, strict=True)))
    template = "{caption}, {light} light, {mood} mood"
    assert caption_dataset(given, template, "light: soft", "", "drop clause", 0) == [
        "a, neon light, calm mood",
        "b, soft light",
        "c, soft light",
    ]
    with pytest.raises(KilnError, match=r"needs \{mood\}, which is empty"):
        caption_dataset(given, template, "light: soft", "", "error", 0)
    with pytest.raises(KilnError, match="known are caption, folder, light, mood, name, trigger"):
        caption_dataset(given, "{modd}", "", "", "drop clause", 0)


words = st.text(alphabet="abcxyz ", max_size=8)


@given(
    st.lists(st.tuples(words, st.sampled_from(["a", "b", "c", ""])), max_size=6),
    st.fixed_dictionaries(dict.fromkeys("abc", words)),
)
def test_no_brace_and_no_dangling_comma(clauses: list[tuple[str, str]], fields: dict[str, str]) -> None:
    template = ",".join(text + (f"{{{name}}}" if name else "") for text, name in clauses)
    caption = fill(template, fields)
    assert "{" not in caption and "}" not in caption
    assert all(part.strip() for part in caption.split(",")) or caption == ""
    assert caption == caption.strip(" ,") and "  " not in caption
