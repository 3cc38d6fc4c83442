"""Changes to a dataset's sidecars and files: whole, versioned, and taken back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.media import picture
from trainer.dataset.browse import Contents, Listed, Part, dataset_folders
from trainer.dataset.edit import MOST_OUTDATED, Change, DatasetEditor, Outdated, Seen, recover_all
from trainer.dataset.journal import Journal
from trainer.dataset.places import AS_THEY_ARE, Places
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.errors import KilnError
from trainer.temporary import temporary_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(3):
        picture(folder / f"{number}.png", caption=f"caption {number}")
    return folder


@pytest.fixture
def editor(root: Path, tmp_path: Path) -> DatasetEditor:
    return DatasetEditor(root, Part(), tmp_path / "journals")


def items(root: Path) -> dict[str, Listed]:
    return {item.name: item for item in Contents(root, Part()).items()}


def seen(root: Path, *names: str) -> list[Seen]:
    found = items(root)
    return [Seen(name, found[name].version) for name in names]


def files(root: Path) -> dict[str, bytes]:
    """Everything in the folder, hidden files too."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def write(editor: DatasetEditor, caption: str | None, *names: str, **fields: str) -> None:
    editor.write([Change(each, caption, fields) for each in seen(editor.root, *names)], "caption")


def test_captions_and_fields_become_sidecars(root: Path, editor: DatasetEditor) -> None:
    (root / "2.json").write_text('{"lighting": "neon", "workflow": {"nodes": [1]}}', "utf-8")
    write(editor, "a red zorb", "0.png")
    write(editor, None, "2.png", lighting="dusk", subject="zorb")
    assert (root / "0.txt").read_text("utf-8") == "a red zorb"
    assert json.loads((root / "2.json").read_text("utf-8")) == {
        "lighting": "dusk",
        "workflow": {"nodes": [1]},
        "subject": "zorb",
    }
    found = {item.path.name: item for item in scan_folder(root).items}
    assert found["0.png"].caption == "a red zorb" and found["1.png"].caption == "caption 1"
    assert dict(found["2.png"].fields) == {"lighting": "dusk", "subject": "zorb"}
    write(editor, None, "2.png", lighting="")
    assert "lighting" not in json.loads((root / "2.json").read_text("utf-8"))


def test_the_file_that_holds_the_caption_is_the_one_that_is_written(
    root: Path, editor: DatasetEditor
) -> None:
    os.rename(root / "0.txt", root / "0.caption")
    write(editor, "new", "0.png")
    assert (root / "0.caption").read_text("utf-8") == "new" and not (root / "0.txt").exists()


def test_a_mask_is_written_where_the_item_has_its_own(root: Path, editor: DatasetEditor) -> None:
    picture(root / "1-masklabel.webp")
    picture(root / "2.jpg")  # shares its stem: a mask named 2 would be of both
    old = (root / "1-masklabel.webp").read_bytes()
    for name in ("0.png", "1.png", "2.png"):
        editor.write_mask(seen(root, name)[0], name.encode())
    assert (root / "masks" / "0.png").read_bytes() == b"0.png"
    assert (root / "1-masklabel.png").read_bytes() == b"1.png" and not (root / "1-masklabel.webp").exists()
    assert (root / "masks" / "2.png.png").read_bytes() == b"2.png"
    found = items(root)
    assert {name for name, item in found.items() if item.mask} == {"0.png", "1.png", "2.png"}
    assert found["0.png"].mask_stamp > 0 == found["2.jpg"].mask_stamp
    for _ in range(3):
        newest = editor.newest()
        assert newest is not None and newest.what == "mask"
        editor.undo(newest.id)
    assert (root / "1-masklabel.webp").read_bytes() == old and not any(
        i.mask for n, i in items(root).items() if n != "1.png"
    )


def test_a_caption_can_be_emptied_wherever_it_stands(root: Path, editor: DatasetEditor) -> None:
    (root / "0.json").write_text('{"Text": "from json", "lighting": "neon"}', "utf-8")
    write(editor, "", "0.png")
    assert items(root)["0.png"].caption == "" and items(root)["0.png"].fields == {"lighting": "neon"}
    for name in ("1.txt", "2.txt"):
        (root / name).unlink()
    (root / "metadata.csv").write_text("file_name;text\nset/1.PNG;from a table\n", "utf-8")
    assert items(root)["1.png"].caption == "from a table"
    with pytest.raises(KilnError, match="stands in the folder's table"):
        write(editor, "", "1.png")
    write(editor, "mine", "1.png")
    assert items(root)["1.png"].caption == "mine"
    editor.set_aside(seen(root, "1.png"))
    assert (root / "metadata.csv").read_text("utf-8") == "file_name;text\n"


def test_nothing_is_written_when_an_item_has_changed_meanwhile(root: Path, editor: DatasetEditor) -> None:
    looked = seen(root, "0.png", "1.png", "2.png")
    (root / "1.txt").write_text("from another tab", "utf-8")
    before = files(root)
    with pytest.raises(Outdated, match=r"'1.png' changed meanwhile") as refused:
        editor.write([Change(each, "mine") for each in looked], "caption")
    assert refused.value.names == ["1.png"] and files(root) == before


@pytest.mark.parametrize("kind", ["that are gone", "that have changed"])
def test_of_many_outdated_items_only_some_are_looked_for(
    root: Path, editor: DatasetEditor, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A page, or a program, that sends fifty thousand of them gets the same short answer after as little work."""
    names = [f"{n}.png" for n in range(50_000)]
    if kind == "that have changed":
        names = [f"{n}.png" for n in range(3, 303)]
        for name in names:
            (root / name).touch()
    looked: list[Path] = []
    item = Contents.item
    monkeypatch.setattr(Contents, "item", lambda self, path: looked.append(path) or item(self, path))
    changes = [
        Change(each, "mine") for each in [*seen(root, "0.png"), *(Seen(name, "old") for name in names)][1:]
    ]
    before, looked[:] = files(root), []
    with pytest.raises(
        Outdated, match=rf"^Nothing was written: '{names[0]}' and 99\+ more changed meanw"
    ) as told:
        editor.write(changes, "caption")
    assert told.value.names == names[:MOST_OUTDATED] and len(looked) == MOST_OUTDATED
    looked.clear()
    with pytest.raises(Outdated, match=" and 98 more changed"):
        editor.set_aside([change.seen for change in changes[: MOST_OUTDATED - 1]])
    assert files(root) == before and len(looked) == MOST_OUTDATED - 1


def test_nothing_is_written_when_one_file_cannot_be(
    root: Path, editor: DatasetEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, replace = files(root), os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == "2.txt":
            raise PermissionError("locked by another program")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KilnError, match="Nothing was changed: locked by another program"):
        write(editor, "mine", "0.png", "1.png", "2.png")
    assert files(root) == before


def test_undo_goes_back_step_by_step(root: Path, editor: DatasetEditor) -> None:
    states = [files(root)]
    write(editor, "one", "0.png")
    states.append(files(root))
    write(editor, "two", "0.png", "1.png", lighting="neon")
    for state in reversed(states):
        newest = editor.newest()
        assert newest is not None
        editor.undo(newest.id)
        assert files(root) == state
    assert editor.newest() is None


def test_undo_leaves_alone_what_has_changed_since(root: Path, editor: DatasetEditor) -> None:
    write(editor, "one", "0.png")
    write(editor, "two", "1.png")
    (root / "1.txt").write_text("by hand", "utf-8")
    newest = editor.newest()
    assert newest is not None
    with pytest.raises(KilnError, match=r"'1.txt' has changed since and is left as it is"):
        editor.undo(newest.id)
    assert (root / "1.txt").read_text("utf-8") == "by hand"
    before = editor.newest()
    assert before is not None and before.id != newest.id
    with pytest.raises(KilnError, match="not the newest change"):
        editor.undo(newest.id)
    editor.undo(before.id)
    assert (root / "0.txt").read_text("utf-8") == "caption 0"


def test_a_change_that_a_dying_process_left_half_done_is_put_back(
    root: Path, editor: DatasetEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename, replaced = files(root), os.replace, []

    def dying(source: Path, target: Path) -> None:
        if Path(target).suffix == ".txt":
            if replaced:
                raise SystemExit  # no handler of ours runs after it, but for temporary files
            replaced.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(SystemExit):
        write(editor, "mine", "0.png", "1.png")
    monkeypatch.undo()
    assert files(root) != before
    assert editor.newest() is None
    assert files(root) == before


def dead_in_a_change(root: Path, journals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process leaves it that is killed when it has renamed one of two files."""
    draft, replace_ = temporary_path(root / "1.txt"), os.replace
    draft.write_text("mine")

    def dying(source: Path, target: Path) -> None:
        if Path(target).name == "1.txt":
            raise SystemExit
        replace_(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(SystemExit):
        write(DatasetEditor(root, Part(), journals), "mine", "0.png", "1.png")
    monkeypatch.undo()
    assert (root / "0.txt").read_text() == "mine"
    draft.rename(root / ".0123456789abcdef.tmp")  # of an earlier version, which has not changed for an hour
    os.utime(root / ".0123456789abcdef.tmp", (1, 1))


@pytest.mark.parametrize("written_by", ["this version", "one before"])
def test_journals_name_the_folder_below_the_hosts(root: Path, tmp_path: Path, written_by: str) -> None:
    places, journals = Places({"": tmp_path}), tmp_path / "journals"
    used = places if written_by == "this version" else AS_THEY_ARE
    before = files(root)
    write(DatasetEditor(root, Part(), journals, used), "mine", "0.png")
    (entry,) = journals.glob("*/*.json")
    assert (str(tmp_path) in entry.read_text("utf-8")) == (written_by == "one before")
    entry.rename(entry.with_suffix(".pending"))  # as if the process had died there
    recover_all(journals, places)
    assert files(root) == before and not list(journals.glob("*/*.pending"))


def test_the_next_start_puts_back_what_was_half_done(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its captions are trained; nobody has opened the page."""
    before = files(root)
    dead_in_a_change(root, tmp_path / "journals", monkeypatch)
    recover_all(tmp_path / "journals")
    assert files(root) == before
    assert list((tmp_path / "journals").rglob("*.pending")) == []


def test_recovering_can_be_ended_too(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, journals = files(root), tmp_path / "journals"
    dead_in_a_change(root, journals, monkeypatch)

    def dying(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(SystemExit):
        recover_all(journals)
    monkeypatch.undo()
    assert (root / "0.txt").read_text() == "mine", "not half of anything"
    recover_all(journals)
    assert files(root) == before


def test_what_cannot_be_put_back_now_is_put_back_later(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, journals = files(root), tmp_path / "journals"
    dead_in_a_change(root, journals, monkeypatch)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    recover_all(journals)
    monkeypatch.undo()
    assert "'0.txt' could not be put back" in caplog.text
    recover_all(journals)
    assert files(root) == before


def test_what_was_being_deleted_goes(root: Path, editor: DatasetEditor) -> None:
    """The process was ended when nothing could be taken back any more."""
    (root / ".kiln_deleted").mkdir()
    (root / ".kiln_deleted" / "9.png").write_bytes(b"x")
    editor.newest()
    assert not (root / ".kiln_deleted").exists()


@pytest.mark.parametrize("record", ["[]", "{", '{"root": 5}', "[" * 5000])
def test_a_damaged_journal_stops_nothing(
    root: Path, editor: DatasetEditor, tmp_path: Path, record: str
) -> None:
    write(editor, "mine", "0.png")
    (journal,) = (tmp_path / "journals").rglob("*.json")
    journal.with_suffix(".pending").write_text(record)
    journal.write_text(record)
    recover_all(tmp_path / "journals")
    assert editor.newest() is None and list((tmp_path / "journals").rglob("*.*")) == []


def test_set_aside_takes_everything_along_and_comes_back(root: Path, editor: DatasetEditor) -> None:
    picture(root / "masks" / "1.png")
    before = files(root)
    editor.set_aside(seen(root, "1.png"))
    assert [i.path.name for i in scan_folder(root, ScanOptions(recursive=True)).items] == ["0.png", "2.png"]
    assert {"set_aside/1.png", "set_aside/1.txt", "set_aside/masks/1.png"} <= files(root).keys()
    aside = items(root)["set_aside/1.png"]
    assert aside.aside and aside.caption == "caption 1" and aside.mask
    editor.bring_back(seen(root, "set_aside/1.png"))
    assert files(root) == before and not (root / "set_aside").exists()


@pytest.mark.parametrize("chosen", [["1.png"], ["1.png", "1_control.png"]])
def test_control_pictures_are_set_aside_with_their_items(
    root: Path, editor: DatasetEditor, chosen: list[str]
) -> None:
    """Those without a caption; one with a caption is an item of its own, and so is what the page shows on a delete."""
    for name in ("1_control", "1_control_2", "1-condlabel", "10_control"):
        shutil.copy(root / "1.png", root / f"{name}.png")
    (root / "1_control_2.txt").write_text("an item", "utf-8")
    before = files(root)
    editor.set_aside(seen(root, *chosen))
    gone = {n for n in before if not (root / n).exists()}
    assert {"1.png", "1_control.png", "1-condlabel.png"} <= gone
    assert not gone & {"1_control_2.png", "10_control.png"}
    assert (root / "set_aside" / "1_control.png").exists()
    editor.bring_back(seen(root, *(f"set_aside/{name}" for name in chosen)))
    assert files(root) == before
    editor.delete(seen(root, "1.png"))
    assert (root / "1_control.png").exists() and not (root / "1-condlabel.png").exists()


def test_a_table_loses_the_rows_of_what_is_set_aside_and_gets_them_back(
    root: Path, editor: DatasetEditor
) -> None:
    for number in range(3):
        (root / f"{number}.txt").unlink()
    table = (
        'file_name,text,lighting\r\n0.png,zero,neon\r\n1.png,"one,\nsecond line",dusk\r\n2.png,two,dawn\r\n'
    )
    (root / "metadata.csv").write_bytes(table.encode())
    before = files(root)
    entry = editor.set_aside(seen(root, "1.png"))
    assert (
        root / "metadata.csv"
    ).read_bytes() == b"file_name,text,lighting\r\n0.png,zero,neon\r\n2.png,two,dawn\r\n"
    assert scan_folder(root).skipped == ()
    aside = items(root)["set_aside/1.png"]
    assert aside.caption.split() == ["one,", "second", "line"] and aside.fields == {"lighting": "dusk"}
    editor.undo(entry.id)
    assert files(root) == before


def test_json_lines_lose_only_their_row(root: Path, editor: DatasetEditor) -> None:
    lines = ['{"file_name": "0.png", "text": "zero"}\n', "\n", '{"file_name":"./1.png",  "text": "one"}\n']
    (root / "metadata.jsonl").write_text("".join(lines), "utf-8")
    editor.delete(seen(root, "1.png"))
    assert (root / "metadata.jsonl").read_text("utf-8") == "".join(lines[:2])


def test_delete_is_for_good_and_leaves_the_others(root: Path, editor: DatasetEditor) -> None:
    write(editor, "kept", "0.png")
    assert editor.delete(seen(root, "1.png")) == 2
    assert sorted(files(root)) == ["0.png", "0.txt", "2.png", "2.txt"]
    newest = editor.newest()
    assert newest is not None and newest.what == "caption", "a deletion cannot be undone"


def test_a_caption_that_two_pictures_share_stays(root: Path, editor: DatasetEditor) -> None:
    picture(root / "0.jpg")
    editor.set_aside(seen(root, "0.jpg"))
    assert sorted(n for n in files(root) if "0" in n) == ["0.png", "0.txt", "set_aside/0.jpg"]


def test_a_name_that_is_taken_stops_the_way_back(root: Path, editor: DatasetEditor) -> None:
    editor.set_aside(seen(root, "1.png"))
    picture(root / "1.png")
    before = files(root)
    with pytest.raises(KilnError, match=r"'1.png' is there already"):
        editor.bring_back(seen(root, "set_aside/1.png"))
    assert files(root) == before


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "/etc/passwd", "a/../../outside.png", "", "\0.png", "linked/secret.png", "x" * 999],
)
def test_names_that_lead_out_of_the_folder_are_refused(root: Path, editor: DatasetEditor, name: str) -> None:
    outside = root.parent / "outside"
    picture(outside / "secret.png", caption="secret")
    picture(root.parent / "outside.png")
    (root / "linked").symlink_to(outside, target_is_directory=True)
    everything = files(root.parent)
    with pytest.raises(KilnError):
        editor.write([Change(Seen(name, "x"), "mine")], "caption")
    with pytest.raises(KilnError):
        editor.delete([Seen(name, "x")])
    assert files(root.parent) == everything


def test_a_linked_sidecar_is_not_written_through(root: Path, editor: DatasetEditor) -> None:
    outside = root.parent / "outside.txt"
    outside.write_text("theirs", "utf-8")
    (root / "0.txt").unlink()
    (root / "0.txt").symlink_to(outside)
    with pytest.raises(KilnError, match=r"'0.txt' is a link"):
        write(editor, "mine", "0.png")
    assert outside.read_text("utf-8") == "theirs"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"caption": "x"}, "cannot be called 'caption'"), ({"": "x"}, "cannot be called ''")],
)
def test_fields_that_mean_something_else_are_refused(
    editor: DatasetEditor, fields: dict[str, str], sentence: str
) -> None:
    with pytest.raises(KilnError, match=sentence):
        editor.write([Change(each, None, fields) for each in seen(editor.root, "0.png")], "fields")


def test_a_caption_that_is_no_text_file_yet_can_be_mended(root: Path, editor: DatasetEditor) -> None:
    (root / "0.txt").write_bytes(b"\xff\xfe broken")
    assert items(root)["0.png"].error
    write(editor, "mended", "0.png")
    assert items(root)["0.png"].caption == "mended"
    newest = editor.newest()
    assert newest is not None
    editor.undo(newest.id)
    assert (root / "0.txt").read_bytes() == b"\xff\xfe broken"


def test_old_entries_go(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.dataset.journal.MOST_ENTRIES", 3)
    journal = Journal(tmp_path / "journals", root)
    made = [journal.apply("caption", ["0.png"], {"0.txt": str(n).encode()}) for n in range(6)]
    for entry in made[:-4:-1]:
        journal.undo(entry.id)
    assert journal.newest() is None and (root / "0.txt").read_bytes() == b"2"


def test_folders_with_pictures_are_found(tmp_path: Path) -> None:
    for name in (
        "a/1.png",
        "a/2.png",
        "b/10_c/1.png",
        "b/set_aside/1.png",
        "a/masks/1.png",
        ".hidden/1.png",
        "0.png",
    ):
        picture(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert dataset_folders(tmp_path) == [("a", 2), ("b/10_c", 1)]
