"""Files from a browser: names, clashes, archives."""

from __future__ import annotations

import copy
import os
import random
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.media import picture
from trainer.dataset.names import check_new_name
from trainer.dataset.upload import (
    WAITING,
    Clash,
    FileExists,
    clear_archives,
    look_into,
    look_over,
    receiving,
    refusal,
    unpack,
)
from trainer.errors import KilnError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "input" / "set"


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    def made(**files: bytes) -> Path:
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path

    return made


def put(folder: Path, name: str, data: bytes, clash: Clash = "refuse") -> None:
    with receiving(folder, name, clash) as target:
        if target is not None:
            target.write(data)


def found(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize(
    "name",
    [
        *("../a.png", "/a.png", "a/../b.png", "a//b.png", "./a.png", "a\\b.png", "C:a.png", ".hidden.png"),
        *(
            "con.png",
            "NUL.txt",
            "a\n.png",
            "a .png/b.png ",
            "x" * 300 + ".png",
            "",
            "a/" * 20 + "b.png",
            "a\0.png",
        ),
        *("a.exe", "a.svg", "a.html", "a.py", "noending"),
    ],
)
def test_refused_names(name: str, folder: Path) -> None:
    assert refusal(name)
    with pytest.raises(KilnError):
        put(folder, name, b"data")
    assert not folder.parent.exists() or not found(folder.parent)


def test_archives_that_nobody_came_back_for_go(tmp_path: Path) -> None:
    for name, age in (("old.zip", WAITING + 10), ("new.zip", 0), ("old.txt", WAITING + 10)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    clear_archives(tmp_path)
    clear_archives(tmp_path / "nowhere")
    assert {p.name for p in tmp_path.iterdir()} == {"new.zip", "old.txt"}


@pytest.mark.parametrize(
    "name", ["a.png", "10_cat/a b (1).JPG", "a.png.txt", "metadata.csv", "masks/a.png", "\u732b.webp"]
)
def test_taken_names(name: str, folder: Path) -> None:
    assert refusal(name) == ""
    put(folder, name, b"data")
    assert found(folder) == {name: b"data"}


def test_folder_names() -> None:
    assert check_new_name(" my photos/10_cat ") == "my photos/10_cat"
    for name in ("", "..", "a/../b", "/a", "a/", 7, None):
        with pytest.raises(KilnError, match="folder name"):
            check_new_name(name, "folder name")


def test_clashes_are_asked_about(folder: Path) -> None:
    for name in ("a.png", "b.png", "b.txt"):
        put(folder, name, b"old")
    answer = look_over(folder, ["a.png", "a.txt", "masks/a.png", "c.png", "x.exe", "Thumbs.db", "b.txt"])
    assert answer.taken == ["a.png", "a.txt", "masks/a.png", "c.png", "b.txt"]
    assert answer.clashing == ["a.png", "b.txt"] and [name for name, _ in answer.refused] == ["x.exe"]
    assert answer.renamed == {
        "a.png": "a (1).png",
        "a.txt": "a (1).txt",
        "masks/a.png": "masks/a (1).png",
        "b.txt": "b (1).txt",
    }, "what belongs together gets the same new name"
    with pytest.raises(FileExists, match=r"'a.png' is there already"):
        put(folder, "a.png", b"new")
    put(folder, "a.png", b"new", "skip")
    assert found(folder)["a.png"] == b"old"
    put(folder, "a.png", b"new", "replace")
    assert found(folder)["a.png"] == b"new"


def test_an_upload_that_breaks_off_leaves_nothing(folder: Path) -> None:
    put(folder, "a.png", b"old")
    with pytest.raises(RuntimeError), receiving(folder, "a.png", "replace") as target:
        assert target is not None
        target.write(b"half")
        raise RuntimeError
    assert found(folder) == {"a.png": b"old"}


def test_a_folder_that_is_a_link_is_not_left(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder.mkdir(parents=True)
    (folder / "sub").symlink_to(outside, target_is_directory=True)
    with pytest.raises(KilnError, match="leads out of"):
        put(folder, "sub/a.png", b"data")
    assert not found(outside)


def test_archives_lose_their_one_outer_folder(folder: Path, pack: Callable[..., Path]) -> None:
    files = {
        "photos/a.png": b"1",
        "photos/10_x/b.png": b"2",
        "__MACOSX/photos/._a.png": b"",
        "photos/readme.md": b"3",
    }
    archive = pack(**files)
    answer = look_into(archive, folder)
    assert answer.taken == ["a.png", "10_x/b.png"] and [n for n, _ in answer.refused] == ["readme.md"]
    assert unpack(archive, folder, "refuse") == 2
    assert found(folder) == {"a.png": b"1", "10_x/b.png": b"2"}
    with pytest.raises(FileExists):
        unpack(archive, folder, "refuse")
    assert unpack(archive, folder, "skip") == 0
    assert unpack(archive, folder, "keep both") == 2
    assert sorted(found(folder)) == ["10_x/b (1).png", "10_x/b.png", "a (1).png", "a.png"]


@pytest.mark.parametrize(
    ("outer", "into", "kept"),
    [
        ("masks", "set", True),
        ("Mask", "set", True),
        ("set_aside", "set", True),
        ("control", "set", True),
        ("10_zorb", "set", True),
        ("10_zorb", "10_zorb", False),
        ("2024_summer", "set", False),
        ("photos", "set", False),
    ],
)
def test_an_outer_folder_that_means_something_is_kept(
    tmp_path: Path, pack: Callable[..., Path], outer: str, into: str, kept: bool
) -> None:
    archive = pack(**{f"{outer}/a.png": b"1", f"{outer}/b.png": b"2"})
    names = [f"{outer}/a.png", f"{outer}/b.png"] if kept else ["a.png", "b.png"]
    assert look_into(archive, tmp_path / into).taken == names
    unpack(archive, tmp_path / into, "refuse")
    assert sorted(found(tmp_path / into)) == names


def test_archive_entries_that_lead_elsewhere(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../up.png", "/abs.png", "good.png", "a/../../up.png", "sub\\win.png"):
            archive.writestr(name, b"data")
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    answer = look_into(path, folder)
    assert answer.taken == ["good.png"] and len(answer.refused) == 5
    assert any("is a link" in reason for _, reason in answer.refused)
    unpack(path, folder, "refuse")
    assert found(folder) == {"good.png": b"data"}
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["good.png"]


def test_bombs_are_refused(folder: Path, pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(**{"bomb.png": bytes(30 << 20), "good.png": b"data"})
    answer = look_into(archive, folder)
    assert answer.taken == ["good.png"] and "as bombs do" in answer.refused[0][1]
    monkeypatch.setattr("trainer.dataset.upload.MOST_ENTRIES", 1)
    with pytest.raises(KilnError, match="The archive holds 2 files; at most 1"):
        look_into(archive, folder)
    monkeypatch.setattr("trainer.dataset.upload.MOST_UNPACKED", 1000)
    monkeypatch.setattr("trainer.dataset.upload.MOST_ENTRIES", 9)
    with pytest.raises(KilnError, match="The archive unpacks to"):
        unpack(archive, folder, "refuse")
    assert not folder.exists()


def test_entries_that_share_their_bytes_are_a_bomb(folder: Path, tmp_path: Path) -> None:
    """Each grows within its limit; all of them are the same bytes of the archive."""
    path = tmp_path / "shared.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", random.Random(1).randbytes(10_000) * 100)
        (first,) = archive.filelist
        for number in range(1, 400):
            info = copy.copy(first)
            info.filename = f"{number}.png"
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    with pytest.raises(KilnError, match="The archive grows more than 200 times when it is unpacked"):
        look_into(path, folder)


@pytest.mark.parametrize("large", [False, True])
def test_a_list_of_millions_of_files_is_not_read(folder: Path, tmp_path: Path, large: bool) -> None:
    """It would take a gigabyte before its entries could be counted."""
    entry = b"PK\x01\x02" + bytes(42)
    size = 46 * 300_000
    end = b"PK\x05\x06" + bytes(4) + b"\xff" * 4
    end += (b"\xff" * 8 if large else size.to_bytes(4, "little") + bytes(4)) + bytes(2)
    if large:
        record = (
            b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(28) + size.to_bytes(8, "little") + bytes(8)
        )
        locator = b"PK\x06\x07" + bytes(4) + size.to_bytes(8, "little") + (1).to_bytes(4, "little")
        end = record + locator + end
    path = tmp_path / "list.zip"
    path.write_bytes(entry * 300_000 + end)
    with pytest.raises(KilnError, match=r"The archive's list of files has 13 MB, as bombs do"):
        look_into(path, folder)


def test_an_entry_cannot_hold_more_than_it_says(folder: Path, pack: Callable[..., Path]) -> None:
    archive = pack(**{"a.png": b"x" * 5000})
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(mark) + offset
        data[at : at + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(KilnError):
        unpack(archive, folder, "refuse")
    assert not folder.exists() or not found(folder)


def test_what_is_no_archive(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(KilnError, match="pack it again as a zip file"):
        look_into(tmp_path / "a.png", folder)


def test_a_full_disk_is_seen_before(
    folder: Path, pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.dataset.upload.SPARE", 1 << 60)
    with pytest.raises(KilnError, match="free some space first"):
        unpack(pack(**{"a.png": b"1"}), folder, "refuse")
