"""Which files of a folder belong to a dataset, and what folder names say of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STILL_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif", ".tif", ".tiff")
VIDEO_ENDINGS = (".mp4", ".mov", ".webm", ".mkv")
ENDINGS = STILL_ENDINGS + VIDEO_ENDINGS
CAPTION_ENDINGS = (".txt", ".caption", ".json")
TABLES = ("metadata.jsonl", "metadata.csv")  # the Hugging Face imagefolder convention
MASKS = "masks"  # a folder of this name beside the images holds their masks

_REPEATS = re.compile(r"(\d{1,4})_(.*)")


@dataclass(frozen=True)
class MediaFiles:
    """Media files in natural order, and folders that were not entered."""

    media: list[Path]
    links: list[Path]


def find_media(folder: Path, recursive: bool, also: str = "") -> MediaFiles:
    """Every media file of a folder. Hidden files and mask folders are left out, links to folders are not followed.

    Args:
        folder: must exist.
        recursive: enter sub-folders.
        also: a sub-folder that is entered in any case; "" for none.
    """
    media: list[Path] = []
    links: list[Path] = []
    for directory, folders, names in os.walk(folder):
        here = Path(directory)
        entered = [n for n in folders if not n.startswith(".") and n != MASKS]
        if not recursive and here == folder:
            entered = [n for n in entered if n == also]
        links += [here / n for n in entered if (here / n).is_symlink()]
        folders[:] = [n for n in entered if not (here / n).is_symlink()]
        media += [here / n for n in names if not n.startswith(".") and Path(n).suffix.lower() in ENDINGS]
    return MediaFiles(sorted(media, key=natural_key), sorted(links))


def folder_state(folder: Path, recursive: bool, also: str = "") -> str:
    """Changes whenever a file that matters does: names, sizes and times, no contents."""
    digest = hashlib.sha256()
    for path in _files_that_matter(folder, recursive, also):
        try:
            status = path.stat()
        except OSError:
            continue
        digest.update(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """a2 before a10."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def repeats_of(path: Path, root: Path) -> int:
    """How often the nearest folder named like 10_name asks for its files; 1 without one."""
    match = _REPEATS.fullmatch(_numbered_folder(path, root).name)
    return max(1, int(match[1])) if match else 1


def folder_name(path: Path) -> str:
    """The name of a file's folder, without a leading number of repeats."""
    match = _REPEATS.fullmatch(path.parent.name)
    return match[2] if match else path.parent.name


def mask_of(path: Path) -> Path | None:
    """The mask file of an image or clip: same name, in a folder `masks` beside it."""
    candidates = (path.parent / MASKS / (path.stem + ending) for ending in STILL_ENDINGS)
    return next((c for c in candidates if c.is_file()), None)


def _numbered_folder(path: Path, root: Path) -> Path:
    for folder in path.parents:
        if folder == root or _REPEATS.fullmatch(folder.name):
            return folder
    return root


def _files_that_matter(folder: Path, recursive: bool, also: str) -> Iterator[Path]:
    directories = set()
    for path in find_media(folder, recursive, also).media:
        yield path
        yield from (path.with_suffix(ending) for ending in CAPTION_ENDINGS)
        directories.add(path.parent)
    for directory in sorted({folder, *directories}):
        yield from (directory / name for name in TABLES)
        masks = directory / MASKS
        if masks.is_dir():
            yield from sorted(masks.iterdir())
