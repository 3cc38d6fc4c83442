"""Very long texts: read in a time that grows with their length and not with its square.

A text of one piece repeated is what makes an expression try every place anew; one that takes the square of the length
would need hours here, and hold all threads meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.media import picture
from trainer.config.import_settings import import_settings
from trainer.config.settings_text import LONGEST
from trainer.dataset.items import Dataset
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.dataset.tables import plain_path
from trainer.dataset.template import caption_dataset, fill, parse_values
from trainer.dataset.text_files import MOST_CAPTION, read_text
from trainer.errors import KilnError
from trainer.lora_files.prompt_tags import parse_prompt
from trainer.lora_files.strengths import BlockWeights, parse_schedule, parse_sweep

PIECES = [
    "\n",
    " ",
    "a",
    "1",
    "_",
    ".",
    ",",
    ", ",
    "a = ",
    "a b ",
    "(",
    "{",
    "[",
    "<lora:",
    "lora_weight ",
    "./",
    "\\\n",
]
LENGTH = 300_000


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "read",
    [
        parse_prompt,
        lambda text: parse_prompt(f"<lora:a:1>{text}"),
        BlockWeights.parse,
        parse_schedule,
        parse_sweep,
        parse_values,
        plain_path,
        lambda text: fill(text, {"a": "b"}),
    ],
    ids=["prompt", "tagged prompt", "blocks", "schedule", "sweep", "values", "path", "template"],
)
def test_any_repeated_piece(read: Callable[[str], object]) -> None:
    for piece in PIECES:
        for before, behind in (("", ""), ("a", "!")):
            try:
                read(f"{before}{piece * (LENGTH // len(piece))}{behind}")
            except KilnError as error:
                assert len(str(error)) <= 1000


@pytest.mark.timeout(200)
@pytest.mark.parametrize("before", ["", "network_args: ", "--network_args ", "betas: "])
def test_settings(before: str) -> None:
    for piece in ("\n", "a", "a = ", "a b ", "1e-"):
        try:
            import_settings(f"{before}{piece * LONGEST}"[:LONGEST])
        except KilnError as error:
            assert len(str(error)) <= 1000


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a , , b,,c", "a, b,c"),
        (", a\n,b", "a,b"),
        ("a,\n,\n b ,", "a,\n b"),
        ("a (b, c) , d", "a (b, c), d"),
        (" ,, ", ""),
    ],
)
def test_empty_clauses_go(prompt: str, text: str) -> None:
    assert parse_prompt(prompt).text == text


def test_books_are_no_captions(tmp_path: Path) -> None:
    """A text encoder's memory grows with the square of a caption's length."""
    picture(tmp_path / "set" / "a.png", caption="x" * (MOST_CAPTION + 1))
    picture(tmp_path / "set" / "b.png", caption="x" * MOST_CAPTION)
    with pytest.raises(
        KilnError, match=r"a.png has 20001 characters, and at most 20000 are taken; shorten it"
    ):
        scan_folder(tmp_path / "set")
    dataset = scan_folder(tmp_path / "set", ScanOptions(on_bad_file="skip"))
    assert [item.path.name for item in dataset.items] == ["b.png"]
    with pytest.raises(KilnError, match=r"makes a caption of 60004 characters .* at most 20000 are taken"):
        captioned(dataset, "{caption}, {caption}, {caption}")
    with pytest.raises(KilnError, match="template has 700000 characters, and at most 100000 are taken"):
        captioned(dataset, "a, {b} " * 100_000)


def captioned(dataset: Dataset, template: str) -> list[str]:
    return caption_dataset(dataset, template, "", "", "drop clause", 0)


def test_a_text_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(5 << 30)  # without blocks on the disk
    with pytest.raises(KilnError, match=r"a.txt has 5120 MB, and at most 64 MB of text are read"):
        read_text(tmp_path / "a.txt")
