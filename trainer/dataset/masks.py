"""Where the mask of an image or clip lies, and masks that belong to none.

    photo.png   masks/photo.png or mask/photo.png   white counts
                photo-masklabel.png                 as OneTrainer writes it
                its own transparency                what is opaque counts

`photo-condlabel.png`, OneTrainer's picture to condition on, is no mask and is never trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .files import CONDITION_LABEL, MASK_LABEL, STILL_ENDINGS, Found, ending, name_key


class Masks:
    """The mask files of a dataset's folders."""

    def __init__(self, found: Found) -> None:
        self._files: dict[tuple[Path, str], Path] = {}
        self._used: set[Path] = set()
        self.conditions = [p for p in found.labels if p.stem.lower().endswith(CONDITION_LABEL)]
        for path in found.labels:
            if path.stem.lower().endswith(MASK_LABEL):
                self._add(path.parent, path.stem[: -len(MASK_LABEL)], path)
        for folder, inside in found.mask_folders.items():
            for path in (p for each in inside for p in _stills(each)):
                self._add(folder, path.stem, path)  # a folder wins over a label

    def of(self, media: Path) -> Path | None:
        """The mask of an image or clip, whatever the case of its name; masks/photo.png.png is one of photo.png."""
        for name in (media.stem, media.name):
            path = self._files.get((media.parent, name_key(name)))
            if path is not None:
                self._used.add(path)
                return path
        return None

    def orphans(self) -> list[Path]:
        """Masks that belong to nothing that was asked for."""
        return sorted(p for p in self._files.values() if p not in self._used)

    def _add(self, folder: Path, name: str, path: Path) -> None:
        self._files[folder, name_key(name)] = path


def _stills(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if ending(path.name) in STILL_ENDINGS and not path.name.startswith("."):
            yield path
