"""What a killed process has left is found and removed; what another one is writing, and a user's own files, stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.model_files.safetensors_file import Entry, PlannedTensor, write_tensors
from trainer.temporary import (
    SILENT_SECONDS,
    is_temporary,
    is_temporary_in_dataset,
    remove_stale,
    replacing_folder,
    temporary_path,
)

REPO = Path(__file__).parents[2]
NAME_IN_ANOTHER_PROCESS = (
    "import sys; sys.path.insert(0, '.'); from pathlib import Path; from trainer.temporary import temporary_path\n"
    "path = temporary_path(Path(sys.argv[1])); path.write_bytes(b'x' * 1000); print(path, flush=True); input()"
)


on_posix = pytest.mark.skipif(os.name != "posix", reason="whether a process lives is asked on POSIX only")


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A file that a process has left that was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", NAME_IN_ANOTHER_PROCESS, str(tmp_path / "merged.safetensors")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    assert remove_stale([tmp_path]) == 0 and path.is_file(), "its process lives"
    process.kill()
    process.wait()
    return path


@on_posix
def test_what_a_killed_process_has_left_goes_at_once(left: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert remove_stale([left.parent, left.parent / "nowhere"]) == 1000
    assert not left.exists() and left.name in caplog.text


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    mine = temporary_path(tmp_path / "a.safetensors")
    mine.write_text("x")
    elsewhere = tmp_path / ".a.safetensors-k00000000-1-00000000.tmp"  # another machine on the same disk
    elsewhere.write_text("x")
    assert remove_stale([tmp_path]) == 0 and mine.exists() and elsewhere.exists()
    later = time.time() + SILENT_SECONDS + 1
    assert remove_stale([tmp_path], later) == 2 and not mine.exists() and not elsewhere.exists()


def test_a_folder_counts_by_what_changes_in_it(tmp_path: Path) -> None:
    """A checkpoint of an earlier version, which wrote no process into the name."""
    folder = tmp_path / ".step-00000250.tmp"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"x" * 10)
    old = time.time() - SILENT_SECONDS - 10
    os.utime(folder, (old, old))
    assert remove_stale([tmp_path]) == 0, "a file in it has changed just now"
    os.utime(folder / "adapter.safetensors", (old, old))
    os.utime(folder, (old, old))
    assert remove_stale([tmp_path]) == 10 and not folder.exists()


@pytest.mark.parametrize(
    "name",
    [
        "notes.tmp",
        ".notes.tmp",
        "merged-0123abcd.tmp",
        ".step-250.tmp",
        "step-00000250",
        ".cache",
        ".x-0123.tmp",
    ],
)
def test_names_of_others_are_left(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert not is_temporary(name)
    assert remove_stale([tmp_path], time.time() + 10 * SILENT_SECONDS) == 0 and (tmp_path / name).exists()


@pytest.mark.parametrize("name", [".lora.safetensors-0123abcd.tmp", ".manifest.tmp", ".step-00000250.tmp"])
def test_names_of_earlier_versions_are_known(name: str) -> None:
    assert is_temporary(name)


@pytest.mark.parametrize("name", ["x" * 255, "\u732b" * 85, "a\ud800b", "x" * 251 + ".txt"])
def test_long_names_have_temporary_ones(tmp_path: Path, name: str) -> None:
    """A photo of 85 Chinese letters has a name as long as a file system takes."""
    path = temporary_path(tmp_path / name)
    path.write_text("x")
    assert is_temporary(path.name) and is_temporary_in_dataset(path.name)


def test_in_a_users_folder_only_certain_names_are_ours() -> None:
    ours = temporary_path(Path("a.txt")).name
    assert all(map(is_temporary_in_dataset, (ours, ".0123456789abcdef.tmp")))
    assert not any(
        map(is_temporary_in_dataset, (".tmp2SWnwT", ".a.txt-0123abcd.tmp", ".manifest.tmp", "a.tmp"))
    )


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "adapter", "old")
    with pytest.raises(RuntimeError), replacing_folder(folder) as new:
        (new / "file").write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"] and (folder / "file").read_text() == "old"
    with replacing_folder(folder) as new:
        (new / "file").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"] and (folder / "file").read_text() == "new"
    with pytest.raises(NotADirectoryError), replacing_folder(folder / "file"):
        pass
    assert (folder / "file").read_text() == "new"


@on_posix
def test_a_folder_behind_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = folder_with(tmp_path / "elsewhere" / "adapter", "old")
    (tmp_path / "link").symlink_to(folder)
    with replacing_folder(tmp_path / "link") as new:
        (new / "file").write_text("new")
    assert (tmp_path / "link").is_symlink() and (folder / "file").read_text() == "new"
    assert {p.name for p in tmp_path.rglob("*")} == {"elsewhere", "adapter", "file", "link"}


@pytest.mark.parametrize("taken", [False, True])
def test_a_folder_that_was_moved_away_comes_back(tmp_path: Path, taken: bool) -> None:
    """The process was ended between moving it away and giving its name to the new one, or just after."""
    before = folder_with(tmp_path / ".adapter-k00000000-1-00000000.before", "old")
    if taken:
        folder_with(tmp_path / "adapter", "new")
    later = time.time() + SILENT_SECONDS + 10
    assert remove_stale([tmp_path]) == 0 and before.exists(), "another machine may be at it"
    remove_stale([tmp_path], later)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "file").read_text() == ("new" if taken else "old")


def test_a_large_folder_that_is_being_written_stays(tmp_path: Path) -> None:
    """Only the file deep in it changes."""
    folder = tmp_path / ".merged-k00000000-1-00000000.tmp"
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "weights").write_text("x")
    old = time.time() - SILENT_SECONDS - 10
    for path in (folder / "transformer", folder):
        os.utime(path, (old, old))
    assert remove_stale([tmp_path]) == 0 and folder.exists()


@on_posix
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / ".link-0123abcd.tmp").symlink_to(tmp_path / "kept")
    assert remove_stale([tmp_path], time.time() + 10 * SILENT_SECONDS) == 0
    assert (tmp_path / "kept" / "file").exists()


def test_what_safetensors_leaves_goes_after_an_hour(tmp_path: Path) -> None:
    """It writes under a name of its own beside the file, and is killed as we are."""
    (tmp_path / ".tmp2SWnwT").write_bytes(b"x")
    assert is_temporary(".tmp2SWnwT") and not is_temporary(".tmp") and not is_temporary(".tmp-notes")
    assert remove_stale([tmp_path]) == 0
    assert remove_stale([tmp_path], now=time.time() + 2 * SILENT_SECONDS) == 1


MERGE_UNTIL_KILLED = (
    "import os, sys; sys.path.insert(0, '.'); import scripts.cpu_torchvision\n"
    "from pathlib import Path; import torch\n"
    "from trainer.model_files.safetensors_file import Entry, PlannedTensor, write_tensors\n"
    "def rows():\n"
    "    yield torch.zeros(50, 100)\n"
    "    os.kill(os.getpid(), 9)\n"
    "write_tensors(Path(sys.argv[1]), [PlannedTensor(Entry('a', 'F32', (100, 100)), rows)], {})\n"
)


@on_posix
def test_the_next_merge_finds_what_a_killed_one_has_left(tmp_path: Path) -> None:
    target = tmp_path / "merged.safetensors"
    command = [sys.executable, "-c", MERGE_UNTIL_KILLED, str(target)]
    assert subprocess.run(command, cwd=REPO, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert is_temporary(left.name) and left.stat().st_size >= 20_000
    rows = torch.ones(2, 2)
    write_tensors(target, [PlannedTensor(Entry("a", "F32", (2, 2)), lambda: [rows])], {})
    assert list(tmp_path.iterdir()) == [target] and torch.equal(load_file(target)["a"], rows)
