"""Paths in our files: below the host's folders, never whole, and back again; whole ones of earlier versions too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.places import AS_THEY_ARE, Places

BASE = Path("/home/me/ComfyUI")
PLACES = Places(
    {"user": Path("/data/users/me"), "input": BASE / "input", "": BASE},
    [Path("/mnt/me/photos"), Path("/mnt/me")],
)
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12)
BELOW = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=5)


@given(st.sampled_from([*PLACES.named.values(), *PLACES.opened]), BELOW)
def test_what_lies_in_the_hosts_folders_tells_nothing_of_the_machine(root: Path, below: list[str]) -> None:
    path = root.joinpath(*below)
    stored = PLACES.stored(path)
    assert PLACES.is_inside(path) and not stored.startswith("/")
    if not any(name in ("user", "input", "opened") for name in below[:1]):
        assert PLACES.found(stored) == path
    for folder in ("/home", "/data", "/mnt"):
        assert not stored.startswith(folder[1:] + "/me") or below[:2] == [folder[1:], "me"]


def test_each_folder_has_its_name() -> None:
    assert PLACES.stored(Path("/data/users/me/__lora_kiln/runs/a")) == "user/__lora_kiln/runs/a"
    assert PLACES.stored(BASE / "input" / "cats" / "1.png") == "input/cats/1.png"
    assert PLACES.stored(BASE / "models" / "m.safetensors") == "models/m.safetensors"
    opened = [PLACES.stored(Path(f"/mnt/me/{name}/1.png")) for name in ("photos", "other")]
    assert (
        opened[0].endswith("/1.png")
        and opened[1].endswith("/other/1.png")
        and "me" not in opened[0].split("/")
    )
    assert PLACES.stored(Path("/elsewhere/1.png")) == "/elsewhere/1.png" and not PLACES.is_inside(
        Path("/elsewhere")
    )


@pytest.mark.parametrize("whole", ["/home/other/ComfyUI/user/a.safetensors", "C:\\Users\\me\\a.safetensors"])
def test_whole_paths_of_earlier_versions_are_read(whole: str) -> None:
    assert PLACES.found(whole) == Path(whole) == AS_THEY_ARE.found(whole)


def test_a_folder_that_is_a_link_is_known_by_both_its_paths(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    places = Places({"input": tmp_path / "link", "": tmp_path})
    assert {places.stored(tmp_path / name / "1.png") for name in ("real", "link")} == {"input/1.png"}


def test_the_folders_are_looked_at_once_for_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run lists thousands of files, of some ten each."""
    places, resolved, resolve = Places({"input": tmp_path / "input", "": tmp_path}), [], Path.resolve
    monkeypatch.setattr(
        Path, "resolve", lambda self, strict=False: resolved.append(self) or resolve(self, strict)
    )
    stored = [places.stored(tmp_path / "input" / f"{n}.png") for n in range(1000)]
    assert stored[7] == "input/7.png" and len(resolved) == 2


def test_a_folder_whose_name_begins_alike_is_another(tmp_path: Path) -> None:
    places = Places({"input": tmp_path / "input"})
    assert places.stored(tmp_path / "inputs" / "1.png") == str(tmp_path / "inputs" / "1.png")


def test_a_mark_of_a_folder_that_is_not_opened_any_more_leads_nowhere() -> None:
    stored = PLACES.stored(Path("/mnt/me/photos/1.png"))
    assert not Places(PLACES.named).found(stored).is_file()
