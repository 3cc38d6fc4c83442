"""Captions by a model: into ordinary sidecars, never over what a user wrote unasked, undone, gone on with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media import clip, picture
from trainer.dataset.browse import Contents, Listed, Part
from trainer.dataset.captioning import (
    Answer,
    Captioned,
    Captioner,
    CaptionOptions,
    CaptionRun,
    Progress,
    clean_caption,
    clean_tags,
    read_fields,
)
from trainer.dataset.edit import Change, DatasetEditor, Seen
from trainer.dataset.from_graph import images_to_dataset
from trainer.dataset.instructions import READY
from trainer.dataset.items import Dataset
from trainer.dataset.model_marks import ModelMarks
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.errors import KilnError


class Fake(Captioner):
    """Says how many pictures it has seen; counts what it is asked."""

    fingerprint = "fake"

    def __init__(self, answer: str = "picture {n}", cut: bool = False) -> None:
        self.answer, self.cut = answer, cut
        self.asked: list[tuple[str, list[tuple[int, int]]]] = []

    def describe(
        self,
        pictures: Sequence[Image.Image],
        instruction: str,
        *,
        most_tokens: int,
        temperature: float,
        seed: int,
    ) -> Answer:
        self.asked.append((instruction, [p.size for p in pictures]))
        return Answer(self.answer.format(n=len(self.asked)), self.cut)


class World:
    """A folder of which some items have a caption, and what a node has."""

    def __init__(self, base: Path) -> None:
        self.base, self.root = base, base / "photos"
        picture(self.root / "a.png", caption="mine")
        picture(self.root / "b.png")
        picture(self.root / "c.png")
        self.marks = ModelMarks(base / "by_model.txt")

    def dataset(self) -> Dataset:
        return scan_folder(self.root, ScanOptions(on_bad_file="skip"))

    def run(self, model: Captioner, dataset: Dataset | None = None, **options: object) -> Captioned:
        wanted = CaptionOptions(instruction="describe it", **options)  # type: ignore[arg-type]
        return CaptionRun(dataset or self.dataset(), model, wanted, self.base / "journals", self.marks).run()

    def items(self) -> dict[str, Listed]:
        return {item.name: item for item in Contents(self.root, Part(), self.marks).items()}

    def editor(self) -> DatasetEditor:
        return DatasetEditor(self.root, Part(), self.base / "journals")

    def undo(self) -> None:
        newest = self.editor().newest()
        assert newest is not None
        self.editor().undo(newest.id)

    def texts(self) -> dict[str, str]:
        return {path.name: path.read_text("utf-8") for path in sorted(self.root.glob("*.txt"))}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_items_without_a_caption_get_one(world: World) -> None:
    found = world.run(Fake(), trigger_word="zorb")
    assert world.texts() == {"a.txt": "mine", "b.txt": "zorb, picture 1", "c.txt": "zorb, picture 2"}
    assert [item.caption for item in found.dataset.items] == ["mine", "zorb, picture 1", "zorb, picture 2"]
    assert (found.written, found.kept) == (2, 1)
    assert [item.caption for item in world.dataset().items] == [i.caption for i in found.dataset.items]


def test_what_a_model_wrote_is_marked_until_it_is_edited(world: World) -> None:
    world.run(Fake())
    assert [item.by_model for item in world.items().values()] == [(), ("caption",), ("caption",)]
    (world.root / "b.txt").write_text("picture 1, edited in another program", "utf-8")
    assert not world.items()["b.png"].by_model
    (world.root / "b.txt").write_text("picture 1", "utf-8")
    assert world.items()["b.png"].by_model, "put back"
    item = world.items()["c.png"]
    world.editor().set_aside([Seen(item.name, item.version)])
    assert world.items()["set_aside/c.png"].by_model, "moved"


def test_a_run_is_taken_back_by_one_undo(world: World) -> None:
    world.run(Fake())
    world.undo()
    assert world.texts() == {"a.txt": "mine"}
    assert world.editor().newest() is None


def test_an_edit_in_between_is_not_taken_back_with_the_run(world: World) -> None:
    class Editing(Fake):
        def describe(self, *args: object, **kwargs: object) -> Answer:  # type: ignore[override]
            if len(self.asked) == 1:
                item = world.items()["a.png"]
                world.editor().write([Change(Seen("a.png", item.version), "mine, edited")], "caption")
            return super().describe(*args, **kwargs)  # type: ignore[arg-type]

    world.run(Editing())
    world.undo()
    assert world.texts() == {"a.txt": "mine, edited", "b.txt": "picture 1"}


def test_a_stopped_run_goes_on_where_it_was(world: World) -> None:
    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done == 1:
            raise Stopped

    options = CaptionOptions(instruction="describe it", which="all", replace=1)
    first = CaptionRun(world.dataset(), Fake("first {n}"), options, world.base / "j", world.marks, stop)
    with pytest.raises(Stopped):
        first.run()
    assert world.texts() == {"a.txt": "first 1"}, "what is done stays"
    second = Fake("second {n}")
    found = CaptionRun(world.dataset(), second, options, world.base / "j", world.marks).run()
    assert world.texts() == {"a.txt": "first 1", "b.txt": "second 1", "c.txt": "second 2"}
    assert (found.written, found.kept) == (2, 1)
    again = world.run(second, which="all")
    assert again.written == 0 and len(second.asked) == 2, "the same model with the same settings"
    assert world.run(second, which="all", temperature=0.0).written == 3


def test_what_the_user_wrote_is_replaced_only_when_it_is_meant(world: World) -> None:
    model = Fake()
    with pytest.raises(
        KilnError, match=r"1 items have a text that you wrote \(the first is a.png\).* replace to 1"
    ):
        world.run(model, which="all")
    assert not model.asked and world.texts() == {"a.txt": "mine"}
    world.run(model, which="without")
    world.run(model, which="without or by a model", temperature=0.1)
    assert world.texts() == {"a.txt": "mine", "b.txt": "picture 3", "c.txt": "picture 4"}
    world.run(model, which="all", replace=1, temperature=0.2)
    assert world.texts()["a.txt"] == "picture 5"
    world.undo()
    assert world.texts()["a.txt"] == "mine"


def test_an_item_that_changes_meanwhile_keeps_what_it_got(world: World) -> None:
    class Slow(Fake):
        def describe(self, *args: object, **kwargs: object) -> Answer:  # type: ignore[override]
            (world.root / "b.txt").write_text("typed meanwhile", "utf-8")
            return super().describe(*args, **kwargs)  # type: ignore[arg-type]

    found = world.run(Slow())
    assert world.texts()["b.txt"] == "typed meanwhile" and world.texts()["c.txt"] == "picture 2"
    assert "1 were changed elsewhere meanwhile and stay as they are: b.png" in found.describe()


def test_fields_are_filled_in_where_they_are_missing(world: World) -> None:
    (world.root / "b.json").write_text('{"lighting": "neon", "other": "x"}', "utf-8")
    model = Fake("Sure!\n- **Lighting**: soft light\nAction: she runs\nmood: sad")
    found = world.run(model, write="fields", fields=("lighting", "action"))
    read = {p.name: json.loads(p.read_text("utf-8")) for p in world.root.glob("*.json")}
    assert read == {
        "a.json": {"lighting": "soft light", "action": "she runs"},
        "b.json": {"lighting": "neon", "other": "x", "action": "she runs"},
        "c.json": {"lighting": "soft light", "action": "she runs"},
    }
    assert model.asked[0][0].endswith("lighting:\naction:")
    assert dict(found.dataset.items[1].fields) == {"lighting": "neon", "other": "x", "action": "she runs"}
    assert world.items()["b.png"].by_model == ("action",)
    assert world.texts() == {"a.txt": "mine"}
    assert world.run(model, write="fields", fields=("lighting", "action")).written == 0
    world.undo()
    assert not (world.root / "a.json").exists() and "action" not in (world.root / "b.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write": "fields"}, "none is named"),
        ({"write": "fields", "fields": ("Caption",)}, "cannot be called 'Caption'"),
        ({"instruction": " "}, "instruction is empty"),
    ],
)
def test_settings_that_write_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(KilnError, match=message):
        CaptionOptions(**{"instruction": "describe it", **options})  # type: ignore[arg-type]


def test_a_clip_is_shown_by_its_frames(tmp_path: Path) -> None:
    clip(tmp_path / "photos" / "run.mp4", frames=16, size=(96, 64))
    picture(tmp_path / "photos" / "large.png", (2400, 1200))
    model = Fake()
    marks = ModelMarks(tmp_path / "marks")
    options = CaptionOptions(instruction="describe it", frames=3)
    CaptionRun(scan_folder(tmp_path / "photos"), model, options, tmp_path / "j", marks).run()
    assert [sizes for _, sizes in model.asked] == [[(1024, 512)], [(96, 64)] * 3]


def test_what_gives_no_caption_is_named(world: World) -> None:
    assert "the model wrote nothing usable of 2: b.png, c.png" in world.run(Fake("<think>so")).describe()
    assert world.texts() == {"a.txt": "mine"}
    assert "2 answers were cut off at max_tokens: b.png, c.png" in world.run(Fake(cut=True)).describe()


def test_a_bad_file_costs_the_others_nothing(world: World) -> None:
    dataset = world.dataset()
    (world.root / "b.png").write_bytes(b"no picture")
    (world.root / "a.txt").write_bytes(b"caf\xe9")  # no UTF-8: it is not written over
    found = world.run(Fake(), dataset)
    assert (world.root / "c.txt").read_text("utf-8") == "picture 1"
    assert (world.root / "a.txt").read_bytes() == b"caf\xe9"
    assert re.search(r"skipped: .*a\.txt.*\nskipped: .*b\.png", found.describe())


def test_two_pictures_with_one_caption_file_are_asked_once(world: World) -> None:
    picture(world.root / "b.jpg")
    model = Fake()
    found = world.run(model)
    assert len(model.asked) == 2
    assert [item.caption for item in found.dataset.items] == ["mine", "picture 1", "picture 1", "picture 2"]


def test_images_of_the_graph_get_captions_without_files(world: World) -> None:
    dataset = images_to_dataset([np.zeros((32, 32, 3), np.float32)], [], world.base / "store")
    before = sorted(world.base.rglob("*"))
    found = world.run(Fake(), dataset)
    assert (
        found.dataset.items[0].caption == "picture 1" and "1 images come from the graph" in found.describe()
    )
    assert sorted(world.base.rglob("*")) == before


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ('Caption: "A red zorb,\n on grass."', "A red zorb, on grass."),
        ("<think>hm\nhm</think>\n- a zorb", "a zorb"),
        ("**Caption:** a zorb", "a zorb"),
        ("'a \"zorb\" runs'", 'a "zorb" runs'),
        ("", ""),
    ],
)
def test_captions_are_cleaned(said: str, kept: str) -> None:
    assert clean_caption(said) == kept


def test_tags_are_cleaned() -> None:
    assert clean_tags("1. 1girl\n2. red hair\n- red hair, smile.\uff0csky") == "1girl, red hair, smile, sky"
    assert clean_tags("<think>a, b") == ""


def test_fields_are_read_whatever_the_model_puts_around_them() -> None:
    said = "Here you are:\n* **Light**\uff1a neon\n2) ACTION : 'runs: fast'\nlight: again"
    assert read_fields(said, ["light", "action"]) == {"light": "neon", "action": "runs: fast"}


def test_the_browser_has_the_same_instructions() -> None:
    text = (Path(__file__).parents[3] / "web" / "instructions.mjs").read_text("utf-8")
    table = text[text.index("INSTRUCTIONS = {") + 15 : text.index("};") + 1]
    table = re.sub(r"(\w+|\"video motion\"):(?= *\{| \"|\n)", lambda m: f'"{m[1].strip(chr(34))}":', table)
    found = json.loads(re.sub(r",(\s*})", r"\1", table))
    assert found == {name: {"write": each.write, "instruction": each.text} for name, each in READY.items()}
