"""Which files of a folder belong to a dataset, and what folder names say of them.

Every folder is listed once. Names are compared without regard to case and Unicode form (`name_key`): folders come from
cameras, from Windows and from macOS, which writes an accent as a letter of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HEIF_ENDINGS = (".heic", ".heif", ".hif")  # the package pillow-heif reads them
JXL_ENDINGS = (".jxl",)  # the package pillow-jxl-plugin
STILL_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif", ".tif", ".tiff"),
    *(".jfif", ".jpe", ".jif", ".jfi", ".jp2", ".j2k", ".jpf", ".jpx", ".apng", ".dib"),
    *(".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".psd", ".pcx", ".dds", ".qoi"),
    *HEIF_ENDINGS,
    *JXL_ENDINGS,
)
VIDEO_ENDINGS = (
    *(".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".m2v", ".mts", ".m2ts", ".ts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)
ENDINGS = STILL_ENDINGS + VIDEO_ENDINGS
CAPTION_ENDINGS = (".txt", ".caption", ".json")
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")  # the Hugging Face imagefolder convention
MASK_FOLDERS = ("masks", "mask")  # a folder of such a name beside the images holds their masks
MASK_LABEL, CONDITION_LABEL = "-masklabel", "-condlabel"  # OneTrainer: photo-masklabel.png beside photo.png
SET_ASIDE = "set_aside"  # a sub-folder for items that are kept and not used

# Of the systems and NAS devices that a folder has lain on: thumbnails, bins, indexes
SYSTEM_FOLDERS = frozenset(
    ("@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found")
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r"))
_NUMBER = re.compile(r"(\d+)")
_LEADING_NUMBER = re.compile(r"(\d+)_(.*)")
MOST_REPEATS = 1000  # of a folder's name, as of the node's own: 1031_trip and 2024_summer are dates
CONTROL_FOLDERS = ("control", "controls", "conditioning")  # as people call those of control pictures


def name_key(name: str) -> str:
    """Equal for names that people take for the same: case and Unicode form do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def ending(name: str) -> str:
    """The last part of a file's name from the dot on, in lower case."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


@dataclass
class Found:
    """What lies in a dataset's folders, in natural order."""

    root: Path
    media: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)  # to folders, not followed
    sidecars: list[Path] = field(default_factory=list)  # captions and fields, tables apart
    tables: dict[Path, Path] = field(default_factory=dict)  # folder -> its table
    labels: list[Path] = field(default_factory=list)  # OneTrainer's files of masks and conditions
    mask_folders: dict[Path, list[Path]] = field(default_factory=dict)  # folder -> those in it
    unread: list[Path] = field(default_factory=list)  # of kinds that are not read
    system: list[Path] = field(default_factory=list)  # folders of systems and devices, not entered
    set_aside: list[Path] = field(default_factory=list)  # not entered
    locked: list[OSError] = field(default_factory=list)  # why folders cannot be read
    unentered: list[Path] = field(default_factory=list)  # other sub-folders, as recursive is off

    def masks(self) -> Iterator[tuple[Path, Path]]:
        """What lies in folders of masks, with the folder of images that it is for: masks/sub is for sub. The nearest
        come first; a folder that cannot be read goes to `locked`."""
        for folder in sorted(self.mask_folders, key=lambda path: (-len(path.parts), path)):
            for masks in self.mask_folders[folder]:
                for directory, folders, names in os.walk(masks, onerror=self.locked.append):
                    folders[:] = sorted(name for name in folders if name_key(name) not in SYSTEM_FOLDERS)
                    place = folder / Path(directory).relative_to(masks)
                    paths = (Path(directory, name) for name in sorted(names))
                    yield from ((place, path) for path in paths if not _is_no_file(path))


def find_files(folder: Path, recursive: bool, also: str = "", apart: Collection[Path] = frozenset()) -> Found:
    """Every file of a folder by what it is for. Hidden ones are left out, links to folders are not followed.

    Args:
        folder: must exist.
        recursive: enter sub-folders.
        also: a sub-folder that is entered in any case; "" for none.
        apart: folders that are left out without a word, since they are for something else.
    """
    found = Found(folder)
    for directory, folders, names in os.walk(folder, onerror=found.locked.append):
        here = Path(directory)
        entered = []
        for name in sorted(folders):
            if not _is_among(here / name, apart) and _enters(
                found, here / name, recursive or here != folder or name == also
            ):
                entered.append(name)
        folders[:] = entered
        for name in names:
            if not name.startswith("."):
                _sort_in(found, here, name)
    found.media.sort(key=natural_key)
    for each in (found.sidecars, found.labels, found.unread):
        each.sort()
    return found


def folder_state(folder: Path, recursive: bool, also: str = "") -> str:
    """Changes whenever something does that is read or named: names, sizes, times and permissions, no contents."""
    found, digest = find_files(folder, recursive, also), hashlib.sha256()
    for path in _files_that_matter(found):
        try:
            status = path.stat()
            what = f"{status.st_size} {status.st_mtime_ns} {status.st_mode}"
        except OSError as error:
            what = type(error).__name__
        digest.update(os.fsencode(path) + f"\0{what}\0".encode())
    for path in (*found.system, *found.set_aside, *found.unentered, *found.links):
        digest.update(os.fsencode(path) + b"\0")
    return digest.hexdigest()


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """a2 before a10."""
    parts = _NUMBER.split(str(path).casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def repeats_of(path: Path, root: Path) -> int:
    """How often the nearest folder named like 10_name asks for its files; 1 without one."""
    for folder in path.parents:
        if (match := _numbered(folder.name)) is not None:
            return int(match[1])
        if folder == root:
            break
    return 1


def folder_name(path: Path) -> str:
    """The name of a file's folder, without a leading number of repeats."""
    match = _numbered(path.parent.name)
    return match[2] if match else path.parent.name


def looks_numbered(name: str) -> bool:
    """Whether a folder is named like 2024_summer, 0731_trip or 01_first: with a number that is none of repeats."""
    return _LEADING_NUMBER.fullmatch(name) is not None and _numbered(name) is None


def means_something(name: str) -> bool:
    """Whether a folder's name says what its files are: masks, control pictures, repeated, or set aside."""
    key = name_key(name)
    return key in (*MASK_FOLDERS, *CONTROL_FOLDERS, SET_ASIDE) or _numbered(name) is not None


def is_system_file(name: str) -> bool:
    """Whether a file is hidden, or one that systems leave in folders of pictures."""
    return name.startswith(".") or name_key(name) in _SYSTEM_FILES


def _numbered(name: str) -> re.Match[str] | None:
    """kohya's rule takes any number; here those with a leading zero and above MOST_REPEATS are names."""
    match = _LEADING_NUMBER.fullmatch(name)
    is_count = (
        match is not None and match[1][0] != "0" and len(match[1]) <= 4 and int(match[1]) <= MOST_REPEATS
    )
    return match if is_count else None


def _is_among(path: Path, folders: Collection[Path]) -> bool:
    return bool(folders) and (path in folders or (path.is_symlink() and path.resolve() in folders))


def _enters(found: Found, path: Path, wanted: bool) -> bool:
    """Whether to walk into a folder; notes what it is where not."""
    name = name_key(path.name)
    if name.startswith("."):
        return False
    if name in SYSTEM_FOLDERS:
        found.system.append(path)
    elif name in MASK_FOLDERS:
        found.mask_folders.setdefault(path.parent, []).append(path)
    elif name == SET_ASIDE:
        found.set_aside.append(path)
    elif not wanted:
        found.unentered.append(path)
    elif path.is_symlink():
        found.links.append(path)
    else:
        return True
    return False


def _sort_in(found: Found, folder: Path, name: str) -> None:
    path, kind, key = Path(folder, name), ending(name), name_key(name)
    if _is_no_file(path):  # reading it might never end
        found.unread.append(path)
    elif key in TABLES:
        known = found.tables.get(folder)
        if known is None or TABLES.index(key) < TABLES.index(name_key(known.name)):
            path, found.tables[folder] = known or path, path
        if path != found.tables[folder]:
            found.unread.append(path)
    elif kind in ENDINGS:
        is_label = path.stem.lower().endswith((MASK_LABEL, CONDITION_LABEL))
        (found.labels if is_label else found.media).append(path)
    elif kind in CAPTION_ENDINGS:
        found.sidecars.append(path)
    elif not is_system_file(name):
        found.unread.append(path)


def _is_no_file(path: Path) -> bool:
    """Whether it is a pipe, a device or a socket, or a link to one. A link to nothing is told when it is read."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _files_that_matter(found: Found) -> Iterator[Path]:
    """What is read or named. Tables and json files may name control pictures anywhere in the folder."""
    yield from (*found.media, *found.sidecars, *found.labels, *found.unread)
    yield from sorted(found.tables.values())
    yield from (path for _, path in found.masks())
    if found.tables or any(ending(path.name) == ".json" for path in found.sidecars):
        known = {*found.media, *found.labels}
        for directory, folders, names in os.walk(found.root):
            folders.sort()
            pictures = (Path(directory, name) for name in sorted(names) if ending(name) in ENDINGS)
            yield from (path for path in pictures if path not in known)
