"""At the host's start, what a killed process has left unfinished is removed (trainer.temporary) or put back."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import folder_paths

from ....trainer.dataset.edit import recover_all
from ....trainer.dataset.upload import clear_archives
from ....trainer.runs.samples import FOLDER as SAMPLES
from ....trainer.temporary import SILENT_SECONDS, is_temporary_in_dataset, remove_stale
from .. import paths
from ..models.model_files import KIND

log = logging.getLogger(__name__)


def remove_unfinished() -> None:
    """Look through the folders on a thread: there may be thousands, and the host starts meanwhile. A second time when
    it is certain that nobody writes what had changed just before."""
    threading.Thread(target=_remove_twice, name="lora-kiln-unfinished", daemon=True).start()


def _remove_twice() -> None:
    _remove()
    time.sleep(SILENT_SECONDS + 60)
    _remove()


def _remove() -> None:
    try:
        recover_all(paths.edit_journals(), paths.places())
        freed = remove_stale(written_folders())
        freed += remove_stale(dataset_folders(), known=is_temporary_in_dataset)
        clear_archives(paths.upload_store())
    except Exception:
        log.exception("Looking for unfinished files failed")
    else:
        if freed:
            log.warning(
                "Unfinished files of ended processes: %.1f GB of disk space are free again", freed / 1e9
            )


def written_folders() -> Iterator[Path]:
    """Every folder in which we write files under temporary names; some may not be there."""
    ours, output = paths.kiln_directory(), Path(folder_paths.get_output_directory())
    encoded = ours / "encoded"
    yield from _below(paths.edit_journals())
    yield from (ours, encoded, encoded / "images", paths.facts_cache(), paths.runs_folder())
    for folder in _below(paths.runs_folder()):
        yield from (folder, folder / SAMPLES)
    for kind in ("latents", "texts"):
        yield from _below(encoded / kind)
    for kind in ("loras", KIND):
        yield from (Path(folder) for folder, *_ in os.walk(output / kind))


def dataset_folders() -> Iterator[Path]:
    """Every folder below ComfyUI/input, where uploads and changes of captions go."""
    yield from (Path(folder) for folder, *_ in os.walk(paths.input_folder()))


def _below(parent: Path) -> list[Path]:
    with suppress(OSError), os.scandir(parent) as entries:
        return [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    return []
