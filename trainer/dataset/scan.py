"""From a folder to a Dataset: every file is opened once, so that a broken one is found now.

Files are decoded on a few threads (pillow and PyAV work outside Python's lock), jpegs at reduced size. What was
measured is cached by name, size and time, so that an unchanged folder is scanned again without reading pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..errors import KilnError
from .combine import hold_out
from .facts import SIDE, Facts, measure
from .files import ENDINGS, VIDEO_ENDINGS, MediaFiles, find_media, folder_name, mask_of, repeats_of
from .items import Dataset, Item
from .pixels import flatten, open_still, read_mask, shown
from .sidecars import Tables, read_sidecars
from .video import probe_clip

OnBadFile = Literal["stop", "skip"]
FORMAT = 1  # of the cached facts: raise it when a measure changes
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """What to read of a folder."""

    repeats: int = 1
    """How often each item is seen in an epoch; folders named like 10_name multiply it."""
    recursive: bool = False
    """Also read sub-folders."""
    on_bad_file: OnBadFile = "stop"
    """Raise at the first bad file, or list it in Dataset.skipped."""
    masks: bool = True
    """Use transparency and files in a folder masks as loss masks."""
    validation_share: float = 0.0
    """Share 0-0.5 of the items that is held out."""
    validation_folder: str = ""
    """A sub-folder whose items are held out."""


def scan_folder(
    folder: Path,
    options: ScanOptions | None = None,
    *,
    facts_cache: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Read what is in a folder.

    Args:
        folder: must exist.
        options: what to read.
        facts_cache: folder of the measurements of earlier scans.
        on_progress: called after each file with (done, total); may raise to stop.

    Raises:
        KilnError: the folder is missing or holds nothing to train on, or a file is bad and on_bad_file is "stop".
    """
    options = options or ScanOptions()
    if not folder.is_dir():
        raise KilnError(
            f"The folder {shown(folder)} does not exist; put your images in a folder under ComfyUI/input."
        )
    files = find_media(folder, options.recursive, options.validation_folder)
    cache = _FactsCache(facts_cache, folder)
    tables = Tables(folder)
    tables.rows(folder)
    if tables.errors and options.on_bad_file == "stop":
        raise KilnError(tables.errors[0])
    items: list[Item] = []
    skipped: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        looks = [pool.submit(cache.facts, path) for path in files.media]
        try:
            for done, (path, look) in enumerate(zip(files.media, looks, strict=True), 1):
                try:
                    items.append(_make_item(path, look.result(), folder, tables, options))
                except KilnError as error:
                    if options.on_bad_file == "stop":
                        raise
                    skipped.append(str(error))
                on_progress(done, len(files.media))
        finally:
            pool.shutdown(cancel_futures=True)
            cache.save()
    for reason in _unused_files(folder, files, tables):
        if options.on_bad_file == "stop":
            raise KilnError(reason)
        skipped.append(reason)
    if not items:
        raise KilnError(_nothing_found(folder, len(files.media), options))
    dataset = Dataset(tuple(items), tuple(dict.fromkeys(skipped)))
    return hold_out(dataset, options.validation_share, options.validation_folder, folder)


def measure_file(path: Path) -> Facts:
    """Decode a file once and measure it.

    Raises:
        KilnError: it cannot be used.
    """
    if not path.exists():
        raise KilnError(f"The file {shown(path)} is a link that leads nowhere; replace or remove it.")
    if path.suffix.lower() in VIDEO_ENDINGS or _moves(path):
        clip = probe_clip(path)
        size, frames, fps, picture = clip.first.size, clip.frames, clip.fps, clip.first
    else:
        picture, size = open_still(path, at_least=SIDE)
        frames, fps = 1, 0.0
    transparent = picture.mode == "RGBA"
    return Facts(
        width=size[0],
        height=size[1],
        sha256=hash_file(path),
        frames=frames,
        fps=fps,
        has_alpha=transparent,
        **measure(flatten(picture), picture.width / size[0]),  # type: ignore[arg-type]
    )


def hash_file(path: Path) -> str:
    """sha256 of a file, read in pieces: clips can be large.

    Raises:
        KilnError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as opened:
            while piece := opened.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise KilnError(f"The file {shown(path)} cannot be read ({error}); replace or remove it.") from error
    return digest.hexdigest()


class _FactsCache:
    """One JSON file per dataset folder: name -> size, time, facts."""

    def __init__(self, cache_folder: Path | None, folder: Path) -> None:
        self._folder = folder
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        self._path = None if cache_folder is None else cache_folder / f"{name}.json"
        self._old = self._read()
        self._new: dict[str, list[Any]] = {}

    def facts(self, path: Path) -> Facts:
        """Of a file: from the cache while its size and time are the same, else measured."""
        key = shown(path.relative_to(self._folder))
        try:
            status = path.stat()
        except OSError:
            return measure_file(path)
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self._old.get(key)
        if entry is not None and entry[:2] == stamp:
            facts = Facts(**entry[2])
        else:
            facts = measure_file(path)
        self._new[key] = [*stamp, dataclasses.asdict(facts)]
        return facts

    def save(self) -> None:
        """Best effort: a full disk costs time at the next scan, nothing else."""
        if self._path is None or self._new == self._old:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"format": FORMAT, "files": {**self._old, **self._new}}), "utf-8")
            os.replace(temporary, self._path)
        except OSError:
            return

    def _read(self) -> dict[str, list[Any]]:
        try:
            data = json.loads(self._path.read_text("utf-8")) if self._path else {}
            return data["files"] if data.get("format") == FORMAT else {}
        except (OSError, ValueError, KeyError, AttributeError):
            return {}


def _make_item(path: Path, facts: Facts, root: Path, tables: Tables, options: ScanOptions) -> Item:
    sidecars = read_sidecars(path, tables.row(path))
    mask = mask_of(path) if options.masks else None
    if mask is not None:
        read_mask(mask)  # a broken one is found now
    return Item(
        path=path,
        facts=facts,
        caption=sidecars.caption,
        repeats=options.repeats * repeats_of(path, root),
        fields=tuple(sidecars.fields.items()),
        folder=folder_name(path),
        mask=mask,
        mask_sha256=hash_file(mask) if mask is not None else "",
        use_alpha=options.masks and facts.has_alpha and mask is None,
    )


def _moves(path: Path) -> bool:
    if path.suffix.lower() != ".gif":
        return False
    try:
        with Image.open(path) as opened:
            return bool(getattr(opened, "is_animated", False))
    except Exception:  # open_still will say what is wrong with it
        return False


def _unused_files(folder: Path, files: MediaFiles, tables: Tables) -> Iterator[str]:
    """A sentence for everything that is no bad file and still not used: links, rows of tables without a file."""
    for link in files.links:
        yield f"The folder {shown(link)} is a link and was not entered; move the images into {shown(folder)}."
    yield from tables.errors
    unread = [name for name in tables.rows(folder) if not (folder / name).exists()]
    if unread:
        yield (
            f"The table in {shown(folder)} names {len(unread)} files that are not there ({unread[0]}, ...); remove "
            "the rows or add the files."
        )


def _nothing_found(folder: Path, files: int, options: ScanOptions) -> str:
    if files:
        reason = f"none of its {files} images can be read"
    else:
        reason = "it holds no image"
        if not options.recursive and any(p.is_dir() for p in folder.iterdir()):
            reason += " itself; to read its sub-folders switch recursive on"
    return f"The folder {shown(folder)} cannot be used: {reason} ({', '.join(ENDINGS)})."
