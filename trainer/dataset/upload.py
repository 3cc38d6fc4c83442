"""Files that come from a browser, singly or in a zip archive: which are taken, how they get into a dataset's folder.

Nothing is written outside that folder, over a file that is there without being asked to, or half. Archives are read
entry by entry: links, encrypted entries, names that lead elsewhere and bombs are refused before anything is unpacked.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from ..errors import KilnError
from ..temporary import temporary_path
from .files import (
    CAPTION_ENDINGS,
    ENDINGS,
    MASK_FOLDERS,
    MASK_LABEL,
    SYSTEM_FOLDERS,
    TABLES,
    ending,
    means_something,
    name_key,
)
from .names import check_new_name, inside, shown_name

Clash = Literal["refuse", "replace", "keep both", "skip"]
"""What happens to a file of a name that is there already. To keep both, the new one gets another name, together with
what belongs to it."""

CLASHES: tuple[Clash, ...] = ("refuse", "replace", "keep both", "skip")
MOST_ENTRIES = 20_000  # of an archive
MOST_RATIO = 200  # unpacked over packed size of an entry; pictures and clips do not shrink, captions little
MOST_UNPACKED = 64 << 30  # bytes of a whole archive
SPARE = 512 << 20  # bytes that stay free on the disk
WAITING = 3600.0  # seconds that an archive waits for the answer what becomes of it
PIECE = 1 << 20
_END_BYTES = (1 << 16) + 200  # of an archive, in which its end record lies: a comment has up to 65,535

JUNK = (
    "thumbs.db",
    "desktop.ini",
    ".ds_store",
    "__macosx",
)  # what systems put beside pictures; nobody misses it


@dataclass(frozen=True)
class Answer:
    """What would become of files that a user wants to upload."""

    taken: list[str]
    clashing: list[str]  # of those taken: they are there already
    refused: list[tuple[str, str]]  # name and reason
    renamed: dict[
        str, str
    ]  # how the taken ones would be called to keep both; those that keep their name are left out


def refusal(name: str) -> str:
    """Why a file is not taken; "" when it is."""
    try:
        check_new_name(name, "file name")
    except KilnError as error:
        return str(error)
    path = PurePosixPath(name)
    if name_key(path.name) in TABLES or ending(path.name) in (*ENDINGS, *CAPTION_ENDINGS):
        return ""
    return (
        f"{shown_name(path.name)} is no picture, clip, caption or table that is read here; convert it first."
    )


def is_junk(name: str) -> bool:
    """Files that systems leave in folders and that are passed over without a word."""
    parts = PurePosixPath(name).parts
    return any(name_key(p) in (*JUNK, *SYSTEM_FOLDERS) or p.startswith("._") for p in parts)


def look_over(folder: Path, names: Sequence[str]) -> Answer:
    """Say beforehand what becomes of files.

    Args:
        folder: where they would go; need not exist.
        names: relative to it.
    """
    answer = Answer([], [], [], {})
    for name in names:
        if is_junk(name):
            continue
        reason = refusal(name)
        if reason:
            answer.refused.append((name, reason))
            continue
        answer.taken.append(name)
        if os.path.lexists(inside(folder, name)):
            answer.clashing.append(name)
    answer.renamed.update(_beside(folder, answer.taken, set(answer.clashing)))
    return answer


def _beside(folder: Path, names: Sequence[str], clashing: set[str]) -> dict[str, str]:
    """Free names for what clashes: a picture, its caption and its mask get the same new stem."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if name_key(PurePosixPath(name).name) not in TABLES:
            groups.setdefault(_group(name), []).append(name)
    renamed: dict[str, str] = {}
    for (_, stem), members in groups.items():
        if clashing.isdisjoint(members):
            continue
        number = 1
        while any(os.path.lexists(folder / _with_stem(m, stem, f"{stem} ({number})")) for m in members):
            number += 1
        renamed |= {m: _with_stem(m, stem, f"{stem} ({number})") for m in members}
    return renamed


def _group(name: str) -> tuple[str, str]:
    """Folder and stem that photo.png, its caption photo.png.txt and its mask masks/photo.png have in common."""
    path = PurePosixPath(name)
    parent = path.parent.parent if name_key(path.parent.name) in MASK_FOLDERS else path.parent
    stem = path.stem.removesuffix(MASK_LABEL)
    if ending(path.name) in CAPTION_ENDINGS and ending(stem) in ENDINGS:
        stem = PurePosixPath(stem).stem
    return str(parent), stem


def _with_stem(name: str, stem: str, new: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(new + path.name.removeprefix(stem)))


@contextmanager
def receiving(folder: Path, name: str, clash: Clash) -> Iterator[IO[bytes] | None]:
    """A file to write what comes into; it gets its name when the block ends well, and is gone when it does not.

    Args:
        folder: the dataset's, made when missing.
        name: relative to it.
        clash: what to do when the name is taken. "skip" yields None then; to keep both, give a name that is free.

    Raises:
        KilnError: the name is refused, or taken and clash is "refuse", or writing failed.
    """
    reason = refusal(name)
    if reason:
        raise KilnError(reason)
    path = inside(folder, name)
    if os.path.lexists(path) and clash != "replace":
        if clash != "skip":
            raise FileExists(name)
        yield None
        return
    draft = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        inside(folder, name)  # what was made lies where it should
        with open(draft, "xb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        _settle(draft, path, clash)
    except FileExistsError as error:  # since we looked
        raise FileExists(name) from error
    except OSError as error:
        raise KilnError(
            f"{shown_name(name)} cannot be written ({error}); check free space and write permission."
        ) from error
    finally:
        draft.unlink(missing_ok=True)


class FileExists(KilnError):
    """A file of that name is there."""

    __module__ = "lora_kiln"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{shown_name(name)} is there already; say whether to replace it, keep both or skip it."
        )


def check_room(folder: Path, size: int) -> None:
    """Raises KilnError when the disk has no room for so many bytes."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if size + SPARE > free:
        raise KilnError(
            f"The disk has {free >> 20} MB left and {size >> 20} MB are to come; free some space first."
        )


@dataclass(frozen=True)
class _Entry:
    info: zipfile.ZipInfo
    name: str  # relative to the dataset's folder


def look_into(archive: Path, folder: Path) -> Answer:
    """Say beforehand what becomes of an archive's files.

    Raises:
        KilnError: it is no zip archive, or is refused as a whole.
    """
    with _opened(archive) as opened:
        entries, refused = _entries(opened, folder.name)
    answer = look_over(folder, [entry.name for entry in entries])
    return replace(answer, refused=[*refused, *answer.refused])


def unpack(
    archive: Path,
    folder: Path,
    clash: Clash,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Put an archive's files into a folder.

    Args:
        archive: a zip file.
        folder: the dataset's, made when missing.
        clash: what to do about names that are taken.
        on_progress: called after each file with (done, total).

    Returns:
        How many files were written.

    Raises:
        KilnError: as look_into, or a file cannot be written or is not what the archive says. Files that were whole
            by then stay.
    """
    with _opened(archive) as opened:
        entries = {entry.name: entry for entry in _entries(opened, folder.name)[0]}
        answer = look_over(folder, list(entries))
        check_room(folder, sum(entries[name].info.file_size for name in answer.taken))
        if clash == "refuse" and answer.clashing:
            raise FileExists(answer.clashing[0])
        written = 0
        for done, name in enumerate(answer.taken, 1):
            new = answer.renamed.get(name, name) if clash == "keep both" else name
            with receiving(folder, new, clash) as target:
                if target is not None:
                    _copy(opened, entries[name], target)
                    written += 1
            on_progress(done, len(answer.taken))
    return written


def _copy(opened: zipfile.ZipFile, entry: _Entry, target: IO[bytes]) -> None:
    """No more than the entry says it holds, whatever its data would unpack to."""
    size = 0
    try:
        with opened.open(entry.info) as source:
            while piece := source.read(PIECE):
                size += len(piece)
                if size > entry.info.file_size:
                    raise KilnError(
                        f"{shown_name(entry.name)} unpacks to more than its archive says; leave it out."
                    )
                target.write(piece)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, KilnError):
            raise
        raise KilnError(
            f"{shown_name(entry.name)} in the archive is damaged ({error}); pack the archive again."
        ) from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma"):
            raise KilnError(
                f"{shown_name(entry.name)} in the archive is damaged; pack the archive again."
            ) from error
        raise


def clear_archives(store: Path) -> None:
    """Remove archives from the folder in which they wait when nobody has come back for them."""
    for file in store.glob("*.zip"):
        with suppress(OSError):  # another thread was first
            if time.time() - file.stat().st_mtime > WAITING:
                file.unlink()


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        _check_directory(archive)
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise KilnError(f"The archive cannot be read ({error}); pack it again as a zip file.") from error
    with opened:
        yield opened


def _check_directory(archive: Path) -> None:
    """Raise KilnError for a list of files that would fill the memory before it can be counted: each takes 46 bytes
    there and a thousand here (APPNOTE 4.3.12 and 4.3.16)."""
    with open(archive, "rb") as file:
        file.seek(max(0, archive.stat().st_size - _END_BYTES))
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0:
            return  # no archive; zipfile says so
        size = int.from_bytes(tail[at + 12 : at + 16], "little")
        if (
            size == 0xFFFFFFFF and tail[at - 20 : at - 16] == b"PK\6\7"
        ):  # it stands in the record for large ones
            file.seek(int.from_bytes(tail[at - 12 : at - 4], "little"))
            size = int.from_bytes(file.read(56)[40:48], "little")
    if size > MOST_ENTRIES * 500:
        raise KilnError(
            f"The archive's list of files has {size >> 20} MB, as bombs do; pack the files again."
        )


def _entries(opened: zipfile.ZipFile, into: str) -> tuple[list[_Entry], list[tuple[str, str]]]:
    """The files of an archive below the one folder that holds them all, and those refused for what they are. `into` is
    the name of the folder that they go to."""
    infos = [info for info in opened.infolist() if not info.is_dir() and not is_junk(info.filename)]
    if len(infos) > MOST_ENTRIES:
        raise KilnError(f"The archive holds {len(infos)} files; at most {MOST_ENTRIES} are taken. Split it.")
    total = sum(info.file_size for info in infos)
    if total > MOST_UNPACKED:
        raise KilnError(
            f"The archive unpacks to {total >> 30} GB; at most {MOST_UNPACKED >> 30} are taken. Split it."
        )
    good: list[_Entry] = []
    refused: list[tuple[str, str]] = []
    for info in infos:
        reason = _refused_entry(info)
        if reason:
            refused.append((info.filename, f"{shown_name(info.filename)} in the archive {reason}"))
        else:
            good.append(_Entry(info, info.filename))
    total = sum(entry.info.file_size for entry in good)
    if total > PIECE and total > MOST_RATIO * _size_of(opened):  # entries may share their bytes
        raise KilnError(
            f"The archive grows more than {MOST_RATIO} times when it is unpacked, as bombs do; pack the files again."
        )
    names = [entry.name for entry in good]
    if len({name.casefold() for name in names}) < len(names):
        raise KilnError("The archive holds two files of one name; pack it again.")
    return _without_common_folder(good, into), refused


def _size_of(opened: zipfile.ZipFile) -> int:
    """Of the whole archive, in bytes."""
    assert opened.filename is not None
    return os.path.getsize(opened.filename)


def _refused_entry(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a link or device; pack the file itself."
    if info.flag_bits & 1:
        return "is encrypted; pack it without a password."
    if info.file_size > PIECE and info.file_size > MOST_RATIO * max(1, info.compress_size):
        return f"grows more than {MOST_RATIO} times when it is unpacked, as bombs do; pack the file itself."
    return ""


def _without_common_folder(entries: list[_Entry], into: str) -> list[_Entry]:
    """photos/a.png, photos/b.png -> a.png, b.png. masks/a.png stays; 10_photos/a.png too, unless it goes into a folder
    of that name. web/dataset_upload.mjs has the same rule for files."""
    tops = {entry.name.split("/")[0] for entry in entries if "/" in entry.name}
    if len(tops) != 1 or any("/" not in entry.name for entry in entries) or tops & {"", ".", ".."}:
        return entries
    if means_something(top := next(iter(tops))) and name_key(top) != name_key(into):
        return entries
    return [_Entry(entry.info, entry.name.split("/", 1)[1]) for entry in entries]


def _settle(draft: Path, path: Path, clash: Clash) -> None:
    """Give a finished file its name. Raises OSError."""
    if clash == "replace":
        os.replace(draft, path)
        return
    try:
        os.link(draft, path)  # fails when the name is taken, also since we looked
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(path.name) from None
        os.replace(draft, path)
