"""Reads and writes safetensors files one tensor at a time, by plain reads, so that memory holds one tensor and no map.

The format (github.com/huggingface/safetensors): 8 bytes little-endian length, a JSON header of that length with dtype,
shape and offsets by name, then the tensors' bytes. Sizes are known before values are, so the header is written first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import KilnError, shortened
from ..lora_files.read import check_safetensors
from ..parsers import parse_json
from ..temporary import remove_stale, temporary_path

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
FP8 = ("F8_E4M3", "F8_E5M2")
_CHUNK = 16 << 20  # bytes copied at a time


@dataclass(frozen=True)
class Entry:
    """One tensor in a file's header.

    Attributes:
        name: its key.
        dtype: in safetensors' words, a key of DTYPES.
        shape: of the tensor.
        start: offset of its first byte in the data part.
        end: offset after its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0


class SafetensorsFile:
    """A safetensors file open for reading; several threads may read at a time. Use it in a `with` block.

    Attributes:
        path: of the file.
        entries: by name, in the order of their bytes.
        metadata: text by name.
        data_start: offset of the data part in the file.
    """

    def __init__(self, path: Path) -> None:
        """Raises KilnError: it is missing, pickled, damaged or cut off."""
        check_safetensors(path)
        self.path = path
        self._file: BinaryIO = path.open("rb", buffering=0)
        self._seek_lock = threading.Lock()
        self._scratch = threading.local()
        length = struct.unpack("<Q", self._file.read(8))[0]
        header = parse_json(self._file.read(length))
        self.data_start = 8 + length
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        entries = [Entry(k, v["dtype"], tuple(v["shape"]), *v["data_offsets"]) for k, v in header.items()]
        self.entries = {e.name: e for e in sorted(entries, key=lambda e: e.start)}

    @cached_property
    def by_module(self) -> dict[str, list[str]]:
        """Names of tensors by what stands before their last dot."""
        found: dict[str, list[str]] = {}
        for name in self.entries:
            found.setdefault(name.rpartition(".")[0], []).append(name)
        return found

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str) -> Tensor:
        """One tensor in the file's dtype, in fresh memory on the CPU."""
        return self.read_rows(name, 0, self.entries[name].shape[0] if self.entries[name].shape else 1)

    def read_rows(self, name: str, first: int, last: int, reuse: bool = False) -> Tensor:
        """Rows first..last-1 of one tensor in the file's dtype (a scalar is one row).

        Args:
            name: of the tensor.
            first: number of the first row.
            last: number after the last row; what is beyond the tensor is left out.
            reuse: the result lies in memory that the same thread's next call with `reuse` overwrites.

        Raises:
            KilnError: the file has become shorter since it was opened.
        """
        entry = self.entries[name]
        rows = entry.shape[0] if entry.shape else 1
        row_bytes = (entry.end - entry.start) // max(rows, 1)
        size = (min(last, rows) - first) * row_bytes
        raw = self._reused(size) if reuse else torch.empty(size, dtype=torch.uint8)
        self._fill(memoryview(raw.numpy().data), self.data_start + entry.start + first * row_bytes)
        shape = (min(last, rows) - first, *entry.shape[1:]) if entry.shape else ()
        if entry.dtype not in DTYPES:
            raise KilnError(
                f"{self.path.name} holds {shortened(name)!r} as {shortened(entry.dtype)!r}, a kind of numbers that "
                "cannot be read here; get the file in another precision."
            )
        return raw.view(DTYPES[entry.dtype]).reshape(shape)

    def _fill(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the file's bytes from `offset` on. On systems with preadv, threads read concurrently."""
        done = 0
        while done < len(view):
            if hasattr(os, "preadv"):  # not on Windows
                done += os.preadv(self._file.fileno(), [view[done:]], offset + done) or _cut_off(self.path)
                continue
            with self._seek_lock:
                self._file.seek(offset + done)
                done += self._file.readinto(view[done:]) or _cut_off(self.path)  # type: ignore[attr-defined]

    def _reused(self, size: int) -> Tensor:
        """That many bytes of memory of this thread."""
        buffer: Tensor | None = getattr(self._scratch, "raw", None)
        if buffer is None or len(buffer) < size:
            buffer = self._scratch.raw = torch.empty(size, dtype=torch.uint8)
        return buffer[:size]

    def copy_to(self, name: str, target: _FullWriter) -> None:
        """Copy one tensor's bytes unchanged."""
        entry = self.entries[name]
        done, size = 0, entry.end - entry.start
        while done < size:
            with self._seek_lock:
                self._file.seek(self.data_start + entry.start + done)
                chunk = self._file.read(min(size - done, _CHUNK))
            done += len(chunk) or _cut_off(self.path)
            target.write(chunk)


def _cut_off(path: Path) -> int:
    """Raise KilnError: a read returned nothing before the end."""
    raise KilnError(f"{path.name} ended while it was read; is somebody changing it?")


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to be written: computed when its turn comes, or copied from another file.

    Attributes:
        entry: name, dtype and shape; its offsets are not used.
        make: returns the rows in order, in blocks of any number of rows; or a file and the name of a tensor in it.
    """

    entry: Entry
    make: Callable[[], Iterable[Tensor]] | tuple[SafetensorsFile, str]


def byte_size(entry: Entry) -> int:
    """Of the tensor's values, in bytes."""
    if entry.dtype not in DTYPES:  # only ever copied
        return entry.end - entry.start
    return math.prod(entry.shape) * DTYPES[entry.dtype].itemsize


def write_tensors(
    path: Path,
    plan: Sequence[PlannedTensor],
    metadata: dict[str, str],
    tick: Callable[[int, int], None] = lambda done, total: None,
    replacements: Callable[[], dict[str, Tensor]] = dict,
) -> None:
    """Write a safetensors file tensor by tensor under a temporary name, and rename it when it is complete.

    Args:
        path: of the file; an existing one is replaced.
        plan: the tensors, in the order in which the file will hold them.
        metadata: text by name.
        tick: told the bytes done and in all; may raise to abandon the file.
        replacements: called after all others are written; returns tensors by name, of the planned dtype and shape,
            that overwrite what the plan gave.

    Raises:
        KilnError: writing failed; nothing is left behind.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset, offsets = 0, {}
    for each in plan:
        size = byte_size(each.entry)
        header[each.entry.name] = {
            "dtype": each.entry.dtype,
            "shape": list(each.entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offsets[each.entry.name] = offset
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _temporary(path) as file:
        file.reserve(8 + len(text) + offset)
        file.write(struct.pack("<Q", len(text)) + text)
        done = 0
        for each in plan:
            tick(done, offset)
            if callable(each.make):
                for block in each.make():
                    assert block.dtype == DTYPES[each.entry.dtype], each.entry.name
                    file.write(_bytes(block))
            else:
                each.make[0].copy_to(each.make[1], file)
            done += byte_size(each.entry)
        for name, tensor in replacements().items():
            file.seek(8 + len(text) + offsets[name])
            file.write(_bytes(tensor))
        tick(offset, offset)


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's values as they lie in a file."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[_FullWriter]:
    """A temporary file beside `path`, renamed to it at the end and removed on an error.

    Raises:
        KilnError: it cannot be written.
    """
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale([path.parent])  # room for this one: what a merge leaves that is killed is as large
        with temporary.open("wb", buffering=0) as file:
            yield _FullWriter(file)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise KilnError(f"Cannot write {path} ({error}); check free space and write permission.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class _FullWriter:
    """An unbuffered file whose write does not return before all bytes are written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek

    def reserve(self, size: int) -> None:
        """Allocate the whole file: a full disk fails before anything is computed, and writing is a third faster."""
        if not hasattr(os, "posix_fallocate"):  # Windows, macOS
            return
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system without it
                raise

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
