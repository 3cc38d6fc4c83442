"""Sentences for what lies in a dataset's folders and is not used, or not as it may have been meant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .files import CAPTION_ENDINGS, MOST_REPEATS, SET_ASIDE, Found, ending, looks_numbered, repeats_of
from .pixels import shown

MOST_NAMES = 12
MANY_REPEATS = 100  # of a folder's name, above which it may mean something else


def unread_sentences(paths: Sequence[Path]) -> list[str]:
    """One for each kind of file that is not read."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        kinds[ending(path.name) or "no ending"].append(path)
    return [
        f"{len(files)} files of a kind that is not read ({kind}) were left out: {names_of(files)}."
        for kind, files in sorted(kinds.items())
    ]


def folder_remarks(found: Found) -> Iterator[str]:
    """On folders that were not entered, and on names that could be mistaken."""
    if found.system:
        yield f"Folders of thumbnails and of the system were not entered: {names_of(found.system)}."
    if found.unentered:
        yield (
            f"Sub-folders were not read, as recursive is off: {names_of(found.unentered)}; switch it on to read them."
        )
    if found.set_aside:
        yield f"What lies in {len(found.set_aside)} folders {SET_ASIDE} was not read."
    folders = _with_parents(found)
    if dates := [each for each in folders if looks_numbered(each.name)]:
        yield (
            f"Folders whose number is a date, is above {MOST_REPEATS} or begins with 0 are seen once, as if they had "
            f"none: {names_of(dates)}."
        )
    if many := [each for each in folders if repeats_of(each / "a", each) > MANY_REPEATS]:
        yield (
            f"Items of {names_of(many)} are seen more than {MANY_REPEATS} times in an epoch, as the folder's number "
            "says; rename it if that means something else."
        )


def _with_parents(found: Found) -> list[Path]:
    """The folders of a dataset's media and those above them, the dataset's own among them."""
    folders: set[Path] = set()
    for folder in {path.parent for path in found.media}:
        inside = [each for each in folder.parents if each == found.root or found.root in each.parents]
        folders.update([folder, *inside])
    return sorted(folders)


def caption_remarks(
    orphans: Sequence[Path], unused: Sequence[Path], empty: Sequence[Path], nested: Sequence[Path]
) -> Iterator[str]:
    """On caption files.

    Args:
        orphans: that belong to no item.
        unused: that say something else than the one that counts.
        empty: without text, beside a caption elsewhere.
        nested: items beside which values are no text.
    """
    texts = [p for p in orphans if ending(p.name) in CAPTION_ENDINGS]
    if texts:
        yield f"{len(texts)} caption files belong to no item: {names_of(texts)}; name each like its image."
    if unused:
        yield (
            f"{len(unused)} caption files are not used, as another one of the same item counts: {names_of(unused)}."
        )
    if empty:
        yield f"{len(empty)} caption files are empty, and the caption is taken from elsewhere: {names_of(empty)}."
    if nested:
        yield (
            f"{len(nested)} items have values in json that are no text, as a saved workflow has; they are neither "
            f"captions nor fields: {names_of(nested)}."
        )


def mask_remarks(
    orphans: Sequence[Path], conditions: Sequence[Path], without_effect: Sequence[Path]
) -> Iterator[str]:
    """On masks.

    Args:
        orphans: masks that belong to no item.
        conditions: files to condition on, which no item has here.
        without_effect: items whose mask keeps nothing of them.
    """
    if without_effect:
        yield (
            f"The masks of {len(without_effect)} items keep nothing, so nothing is learned from them: "
            f"{names_of(without_effect)}; mend them or switch masks off."
        )
    if orphans:
        yield (
            f"{len(orphans)} masks are not used: {names_of(orphans)}; name each like its image, and give an image one."
        )
    if conditions:
        yield f"{len(conditions)} pictures to condition on are not used: {names_of(conditions)}."


def silent_controls(paths: Sequence[Path]) -> Iterator[str]:
    """On pictures that columns name as control pictures of others, and of which nothing is said."""
    if paths:
        yield (
            f"{len(paths)} pictures that a column names as control pictures have no caption, and are no items: "
            f"{names_of(paths)}."
        )


def pair_remarks(without: Sequence[Path], stills: Sequence[Path]) -> Iterator[str]:
    """On items with control pictures.

    Args:
        without: items that have none, where others have.
        stills: items of one frame that have a clip.
    """
    if without:
        yield f"{len(without)} items have no control picture, and the others have: {names_of(without)}."
    if stills:
        yield (
            f"{len(stills)} stills have a clip as their control picture, of which the first frame is used: "
            f"{names_of(stills)}."
        )


def folders_not_entered(found: Found) -> Iterator[str]:
    """A sentence for each that should have been: those that cannot be read, and links."""
    for error in found.locked:
        place = shown(Path(str(error.filename)))
        yield f"The folder {place} cannot be read ({error.strerror}); change its permissions or remove it."
    for link in found.links:
        place = shown(found.root)
        yield f"The folder {shown(link)} is a link and was not entered; move the images into {place}."


def rows_of_nothing(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """On rows of a folder's table whose files are not there, by the names that they give."""
    if names:
        yield (
            f"The table in {shown(folder)} names {len(names)} files that are not there ({names[0]}, ...); remove the "
            "rows or add the files."
        )


def rows_without_effect(folder: Path, twice: Sequence[str], elsewhere: Sequence[str]) -> Iterator[str]:
    """On rows of a folder's table for files that another row names too, and for files that are there and not read."""
    if twice:
        yield (
            f"The table in {shown(folder)} has {len(twice)} rows for files that another row names too ({twice[0]}, "
            "...); the last row counts."
        )
    if elsewhere:
        yield (
            f"The table in {shown(folder)} has {len(elsewhere)} rows of files that are not read ({elsewhere[0]}, ...)."
        )


def all_reasons(reasons: Sequence[str], files: Sequence[Path]) -> str:
    """The first reason, and the names of all other files that are bad: they are mended in one go."""
    if len(files) < 2:
        return reasons[0]
    further = f"Further files that cannot be used ({len(files) - 1}): {names_of(files[1:])}."
    return f"{reasons[0]} {further}"


def none_is_read(folder: Path, count: int) -> str:
    """On a folder of which every file is bad."""
    return f"The folder {shown(folder)} cannot be used: none of its {count} images can be read."


def names_of(paths: Iterable[Path]) -> str:
    """The first names."""
    names = [shown(Path(p.name)) for p in paths]
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
