"""Names of temporary files and folders that tell whose they are, so that those of a process that was killed are found.

    .lora.safetensors-k3f9a2c1b-1a2b-5c6d7e8f.tmp      machine, process, a random part
    .adapter-k3f9a2c1b-1a2b-5c6d7e8f.before            a folder that is moved away while a new one takes its name

A merge that is killed may leave 28 GB. What is left is removed at the next start: at once where the machine and the
process say that nobody writes it any more, else (the machine was started anew, another machine or container on the same
disk, an earlier version) when it has not changed for an hour. A folder that was moved away gets its name back.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

SILENT_SECONDS = 3600.0  # whoever writes changes a file far more often
MOST_BYTES = 255  # of a file's name
_OURS = re.compile(
    r"\.(?P<name>.*)-(?P<machine>k[0-9a-f]{8})-(?P<process>[0-9a-f]+)-[0-9a-f]{8}\.(?P<kind>tmp|before)"
)
_IN_DATASETS = re.compile(r"\.[0-9a-f]{16}\.tmp")  # of earlier versions, in a user's folder
_OF_EARLIER_VERSIONS = re.compile(r"\.(.+-[0-9a-f]{8}|step-\d{8,}|manifest)\.tmp")
_OF_SAFETENSORS = re.compile(r"\.tmp[0-9A-Za-z]{6}")  # what safetensors 0.8 writes before it renames


def _machine() -> str:
    """Where numbers of processes mean what they mean here: this machine since its start; on Linux this container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "k" + hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:8]


_MACHINE = _machine()


def temporary_path(path: Path) -> Path:
    """A name beside `path` that nothing else has; that of a long name holds its beginning."""
    mark = f"-{_mark()}.tmp"
    kept = path.name.encode("utf-8", "ignore")[: MOST_BYTES - 1 - len(mark)].decode("utf-8", "ignore")
    return path.with_name(f".{kept}{mark}")


def _mark() -> str:
    return f"{_MACHINE}-{os.getpid():x}-{secrets.token_hex(4)}"


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder under a temporary name, which takes the name `folder` when the block ends well and is gone when it
    does not. One that has the name is moved away whole first, and deleted: at no moment is half of one there.

    Raises OSError; then the folder of that name is as it was.
    """
    folder = folder.resolve()  # of a link, where it leads
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file")
    temporary, before = temporary_path(folder), folder.with_name(f".{folder.name}-{_mark()}.before")
    remove_stale([folder.parent])  # room for this one, and what a killed process has moved away comes back
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.is_dir():
            os.utime(folder)  # by its age another process would take it for one that nobody comes back for
            os.replace(folder, before)
        try:
            os.replace(temporary, folder)
        except OSError:
            if before.is_dir():
                os.replace(before, folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_temporary(name: str) -> bool:
    """Whether a file or folder of that name is an unfinished one of ours."""
    return any(each.fullmatch(name) for each in (_OURS, _OF_EARLIER_VERSIONS, _OF_SAFETENSORS))


def is_temporary_in_dataset(name: str) -> bool:
    """The same in a user's folder, where names that others may give are left alone."""
    return any(each.fullmatch(name) for each in (_OURS, _IN_DATASETS))


def remove_stale(
    folders: Iterable[Path], now: float | None = None, known: Callable[[str], bool] = is_temporary
) -> int:
    """Remove what processes that are no more have left in these folders themselves; returns its bytes.

    Args:
        folders: not looked into any deeper; one that is not there is passed over.
        now: seconds since 1970.
        known: by which names it is ours.

    What cannot be removed is logged and stays.
    """
    freed = 0
    for path in _stale(folders, time.time() if now is None else now, known):
        try:
            if _put_back(path):
                continue
            size = _size(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            log.warning("The unfinished %s cannot be removed (%s)", path, error)
            continue
        freed += size
        log.warning(
            "Removed %s (%.1f MB), which a process that was ended has left unfinished", path, size / 1e6
        )
    return freed


def _put_back(path: Path) -> bool:
    """Whether a folder that was moved away has its name again, because no new one has taken it."""
    ours = _OURS.fullmatch(path.name)
    if ours is None or ours["kind"] != "before" or os.path.lexists(path.with_name(ours["name"])):
        return False
    os.replace(path, path.with_name(ours["name"]))
    log.warning("Put %s back, which a process that was ended was about to replace", ours["name"])
    return True


def _stale(folders: Iterable[Path], now: float, known: Callable[[str], bool]) -> Iterator[Path]:
    for folder in folders:
        try:
            found = [folder / name for name in os.listdir(folder) if known(name)]
        except OSError:
            continue
        yield from (path for path in found if not path.is_symlink() and _is_stale(path, now))


def _is_stale(path: Path, now: float) -> bool:
    ours = _OURS.fullmatch(path.name)
    if ours is not None and ours["machine"] == _MACHINE:
        process = int(ours["process"], 16)
        if process != os.getpid() and not _lives(process):
            return True
    try:
        return now - _changed(path) > SILENT_SECONDS
    except OSError:
        return False


def _lives(process: int) -> bool:
    """Whether there is such a process on this machine; where that cannot be asked, there may be."""
    if os.name != "posix":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        pass
    return True


def _changed(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() else ()
    return max(each.lstat().st_mtime for each in (path, *inside))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files)
