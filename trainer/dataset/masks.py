"""Where the mask of an image or clip lies, and masks that belong to none.

    photo.png   masks/photo.png or mask/photo.png   white counts; of sub/photo.png masks/sub/photo.png, too
                photo-masklabel.png                 as OneTrainer writes it
                its own transparency                what is opaque counts

`photo-condlabel.png`, OneTrainer's picture to condition on, is no mask and is never trained on.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from .files import CONDITION_LABEL, MASK_LABEL, STILL_ENDINGS, Found, ending, is_system_file, name_key


class Masks:
    """The mask files of a dataset's folders.

    Attributes:
        conditions: OneTrainer's pictures to condition on.
        unread: files in folders of masks that are no stills.
    """

    def __init__(self, found: Found) -> None:
        self._files: dict[tuple[Path, str], list[tuple[str, Path]]] = defaultdict(list)
        self._used: set[Path] = set()
        self.conditions = [p for p in found.labels if p.stem.lower().endswith(CONDITION_LABEL)]
        self.unread: list[Path] = []
        for folder, path in found.masks():
            if ending(path.name) in STILL_ENDINGS and not path.name.startswith("."):
                self._add(folder, path.stem, path)
            elif path.is_file() and not is_system_file(path.name):
                self.unread.append(path)
        for path in found.labels:
            if path.stem.lower().endswith(MASK_LABEL):
                self._add(path.parent, path.stem[: -len(MASK_LABEL)], path)

    def of(self, media: Path) -> Path | None:
        """The mask of an image or clip, whatever the case of its name; masks/photo.png.png is one of photo.png. One of
        just its name comes first, and one in a folder before a label."""
        names = (media.stem, media.name)
        found = [each for name in names for each in self._files.get((media.parent, name_key(name)), ())]
        exact = [path for name, path in found if name in names]
        chosen = next(iter(exact or [path for _, path in found]), None)
        if chosen is not None:
            self._used.add(chosen)
        return chosen

    def orphans(self) -> list[Path]:
        """Masks that belong to nothing that was asked for, or of which another one is used."""
        return sorted(path for files in self._files.values() for _, path in files if path not in self._used)

    def _add(self, folder: Path, name: str, path: Path) -> None:
        self._files[folder, name_key(name)].append((name, path))
