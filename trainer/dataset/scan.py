"""From a folder to a Dataset: every file is opened once, so that a broken one is found now.

Files are decoded on a few threads (pillow and PyAV work outside Python's lock), jpegs at reduced size. What was
measured is cached by name, size and time, so that an unchanged folder is scanned again without reading pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import KilnError
from .combine import hold_out
from .controls import Controls
from .facts import SIDE, Facts, measure
from .facts_cache import FactsCache, MaskFacts
from .files import Found, find_files, folder_name, repeats_of
from .items import Control, Dataset, Item
from .masks import Masks
from .pixels import flatten, is_clip, open_still, read_mask, shown
from .remarks import (
    all_reasons,
    caption_remarks,
    folder_remarks,
    folders_not_entered,
    mask_remarks,
    names_of,
    none_is_read,
    pair_remarks,
    silent_controls,
)
from .sidecars import Said, Sidecars
from .tables import Tables
from .video import probe_clip

OnBadFile = Literal["stop", "skip"]
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """What to read of a folder."""

    repeats: int = 1
    """How often each item is seen in an epoch; folders named like 10_name multiply it."""
    recursive: bool = False
    """Also read sub-folders."""
    on_bad_file: OnBadFile = "stop"
    """Raise when there is a bad file, or list it in Dataset.skipped."""
    masks: bool = True
    """Use transparency and files of masks as loss masks."""
    validation_share: float = 0.0
    """Share 0-0.5 of the items that is held out."""
    validation_folder: str = ""
    """A sub-folder whose items are held out."""
    control_folders: tuple[Path, ...] = ()
    """Folders of control pictures, one for each item by its name; the dataset's own for pictures beside the items."""


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
        KilnError: the folder is missing or holds nothing to train on, a file is bad and on_bad_file is "stop", or the
            masks keep nothing of all items.
    """
    options = options or ScanOptions()
    if not folder.is_dir():
        raise KilnError(
            f"The folder {shown(folder)} does not exist; put your images in a folder under ComfyUI/input."
        )
    found = find_files(folder, options.recursive, options.validation_folder, options.control_folders)
    beside = _Beside(found, FactsCache(facts_cache, folder), options, facts_cache)
    found.media = [path for path in found.media if path not in beside.controls.beside]
    named = beside.named_by_columns()
    found.media = [path for path in found.media if path not in named]
    items: list[Item] = []
    bad: list[tuple[Path, KilnError]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        known = {path: beside.cache.known(path) for path in found.media}
        looks = {
            p: pool.submit(beside.cache.facts, p, measure_file) for p, facts in known.items() if not facts
        }
        try:
            for done, (path, facts) in enumerate(known.items(), 1):
                try:
                    items.append(beside.item(path, facts or looks[path].result()))
                except KilnError as error:
                    bad.append((path, error))
                on_progress(done, len(found.media))
        finally:
            pool.shutdown(cancel_futures=True)
            beside.save()
    reasons = [*(str(error) for _, error in bad), *beside.unused()]
    if reasons and options.on_bad_file == "stop":
        raise KilnError(all_reasons(reasons, [path for path, _ in bad]))
    if not items:
        raise _nothing_found(found, options, reasons, [path for path, _ in bad])
    dataset = Dataset(
        tuple(items),
        skipped=tuple(dict.fromkeys(reasons)),
        bad=tuple((path, str(error)) for path, error in bad),
        unread=(*found.unread, *beside.masks.unread, *beside.controls.unread),
        remarks=tuple(beside.remarks(items)),
    )
    return hold_out(dataset, options.validation_share, options.validation_folder, folder)


def measure_file(path: Path) -> Facts:
    """Decode a file once and measure it.

    Raises:
        KilnError: it cannot be used.
    """
    if not path.exists():
        raise KilnError(f"The file {shown(path)} is a link that leads nowhere; replace or remove it.")
    if is_clip(path):
        clip = probe_clip(path)
        picture, size = clip.first, clip.first.size
        facts = Facts(width=size[0], height=size[1], frames=clip.frames, fps=clip.fps, even=clip.even)
        if clip.frames == 1:
            facts = replace(facts, fps=0.0)
    else:
        picture, size = open_still(path, at_least=SIDE)
        facts = Facts(width=size[0], height=size[1])
    if picture.mode == "RGBA":
        kept = float(np.asarray(picture.getchannel("A")).mean()) / 255
        facts = replace(facts, has_alpha=True, kept=kept)
    figures = measure(flatten(picture), picture.width / size[0])
    return replace(facts, sha256=hash_file(path), **figures)  # type: ignore[arg-type]


def measure_mask(path: Path) -> MaskFacts:
    """Hash of a mask file, the share 0-1 of it that counts, and its width and height.

    Raises:
        KilnError: it cannot be decoded.
    """
    mask = read_mask(path)
    return hash_file(path), float(np.asarray(mask).mean()) / 255, *mask.size


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


class _Beside:
    """What lies beside the images of a folder, and what of it has been used."""

    def __init__(
        self, found: Found, cache: FactsCache, options: ScanOptions, facts_cache: Path | None
    ) -> None:
        self.cache = cache
        self._found, self._options = found, options
        self._tables, self._sidecars, self.masks = Tables(found), Sidecars(found), Masks(found)
        self._said: dict[Path, Said | KilnError] = {}
        self.controls = Controls(options.control_folders, found, self._speaks)
        self._caches = {f: FactsCache(facts_cache, f) for f in options.control_folders if f != found.root}
        self._silent_controls: list[Path] = []

    def item(self, path: Path, facts: Facts) -> Item:
        """One item with all that belongs to it.

        Raises:
            KilnError: a sidecar or the mask cannot be used.
        """
        options = self._options
        said = self._what_is_said(path)
        mask = self.masks.of(path)
        digest, kept, *size = "", 1.0, 0, 0
        if mask is not None and options.masks:
            digest, kept, *size = self.cache.mask(mask, measure_mask)  # a broken one is found now
        return Item(
            path=path,
            facts=facts,
            caption=said.caption,
            repeats=options.repeats * repeats_of(path, self._found.root),
            fields=tuple(said.fields.items()),
            folder=folder_name(path),
            mask=mask if options.masks else None,
            mask_sha256=digest,
            mask_kept=kept,
            mask_size=(size[0], size[1]),
            use_alpha=options.masks and facts.has_alpha and mask is None,
            controls=tuple(self._control(p) for p in self.controls.of(path, said.fields)),
            root=self._found.root,
        )

    def named_by_columns(self) -> frozenset[Path]:
        """The control pictures among the files, of which nothing is said as of an item: they are none."""
        named: set[Path] = set()
        for path in self._found.media:
            with suppress(KilnError):  # raised again where the item is made
                named.update(self.controls.of_columns(path, self._what_is_said(path).fields))
        self._silent_controls = [p for p in self._found.media if p in named and not self._speaks(p)]
        return frozenset(self._silent_controls)

    def _what_is_said(self, path: Path) -> Said:
        """Of a file, read once."""
        if path not in self._said:
            try:
                self._said[path] = self._sidecars.read(path, self._tables.row(path))
            except KilnError as error:
                self._said[path] = error
        said = self._said[path]
        if isinstance(said, KilnError):
            raise said
        return said

    def _speaks(self, path: Path) -> bool:
        """Whether a file has a caption or fields, as an item has."""
        try:
            said = self._what_is_said(path)
        except KilnError:
            return True
        return bool(said.caption or said.fields)

    def save(self) -> None:
        """Keep what was measured."""
        for cache in (self.cache, *self._caches.values()):
            cache.save()

    def _control(self, path: Path) -> Control:
        folder = next((f for f in self._caches if f in path.parents), None)
        cache = self.cache if folder is None else self._caches[folder]
        return Control(path, cache.facts(path, measure_file))

    def unused(self) -> Iterator[str]:
        """What is no bad file and must still be mended: folders, tables, rows without a file."""
        yield from folders_not_entered(self._found)
        yield from self._tables.errors

    def remarks(self, items: list[Item]) -> Iterator[str]:
        """What may not be as it was meant.

        Raises:
            KilnError: the masks keep nothing of any item.
        """
        nothing = [i.path for i in items if i.masked and i.kept == 0]
        if len(nothing) == len(items):
            raise KilnError(
                f"The masks keep nothing of all {len(items)} items ({names_of(nothing)}), so nothing would be learned; "
                "mend them or switch masks off."
            )
        sidecars, masks = self._sidecars, self.masks
        entered = {folder for path in self.controls.used for folder in path.parents}
        self._found.unentered = [folder for folder in self._found.unentered if folder not in entered]
        yield from folder_remarks(self._found)
        yield from self._tables.remarks
        yield from caption_remarks(sidecars.orphans(), sidecars.unused, sidecars.empty, sidecars.nested)
        conditions = [p for p in masks.conditions if p not in self.controls.used]
        yield from mask_remarks(masks.orphans(), conditions, nothing)
        yield from self.controls.remarks()
        yield from silent_controls(self._silent_controls)
        without = [i.path for i in items if not i.controls]
        stills = [
            i.path for i in items if i.facts.frames == 1 and any(c.facts.frames > 1 for c in i.controls)
        ]
        yield from pair_remarks(without if len(without) < len(items) else [], stills)


def _nothing_found(found: Found, options: ScanOptions, reasons: list[str], bad: list[Path]) -> KilnError:
    place = shown(found.root)
    if bad:
        return KilnError(f"{none_is_read(found.root, len(bad))} {all_reasons(reasons, bad)}")
    if found.unentered and not options.recursive:
        return KilnError(
            f"The folder {place} cannot be used: it holds no image itself; to read its sub-folders switch recursive on "
            "(png, jpg, webp, mp4, mov and more kinds are read)."
        )
    return KilnError(
        f"The folder {place} cannot be used: it holds no image (png, jpg, webp, mp4, mov and more kinds are read)."
    )
