"""Encoded files in memory: kept up to a limit as they lie on disk, and read ahead on a thread.

A data set of thousands of items does not fit into memory; its files are then read again in every epoch, and while the
device computes one step the thread reads what the step after the next one needs. Which files those are is known
beforehand (`BatchOrder` is a function of the seed), so what is read ahead is what is asked for, whatever the order in
which reads end.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from .encoded import EncodedFile, read_encoded


class FileReader:
    """Reads encoded files. For one thread; the thread that reads ahead ends with the reader."""

    def __init__(self, limit_bytes: int) -> None:
        """limit_bytes: of tensors that are kept; beyond it a file is read again each time."""
        self.kept: dict[Path, EncodedFile] = {}
        self.kept_bytes = 0
        self._limit = limit_bytes
        self._coming: dict[Path, Future[EncodedFile]] = {}
        self._executor: ThreadPoolExecutor | None = None

    def read_ahead(self, paths: Iterable[Path]) -> None:
        """Begin to read files that will be asked for next; what was begun before and is not among them is dropped."""
        wanted = dict.fromkeys(p for p in paths if p not in self.kept)
        for path in self._coming.keys() - wanted.keys():
            self._coming.pop(path).cancel()
        new = [p for p in wanted if p not in self._coming]
        if new and self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="lora-kiln-reader")
        with suppress(RuntimeError):  # the interpreter ends: whoever still asks reads by himself
            for path in new:
                assert self._executor is not None
                self._coming[path] = self._executor.submit(read_encoded, path)

    def get(self, path: Path) -> EncodedFile:
        """A file's tensors and header.

        Raises:
            KilnError: it is gone or damaged.
        """
        if path in self.kept:
            return self.kept[path]
        coming = self._coming.pop(path, None)
        found = read_encoded(path) if coming is None else coming.result()
        size = sum(t.nbytes for t in found.tensors.values())
        if self.kept_bytes + size <= self._limit:
            self.kept[path] = found
            self.kept_bytes += size
        return found
