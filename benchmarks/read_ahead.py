"""What reading a large data set costs the training thread: on the spot, read ahead on a thread, by torch's DataLoader.

    python -m benchmarks.read_ahead [--items 5000] [--steps 300] [--wait 0.05] [--folder FOLDER]

Items of a latent (16 x 64 x 64, fp32) and a caption (60 of 512 rows of 4096, bf16), batches of 2 in the seeded order,
none kept in memory, the files dropped from the page cache before each round. The device is a wait of --wait seconds
after each step's load, in which the training thread does nothing, as it does nothing while a GPU computes. Told are
milliseconds that a step's load takes the training thread, median and the slowest of a hundred, seconds that the first
load takes, and the memory of further processes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import scripts.cpu_torchvision  # noqa: F401 - before torch's dataloader
from trainer.dataset.batches import BatchOrder, ItemStore, SampleDraw
from trainer.dataset.encoded import EncodedDataset, EncodedItem, write_conditioning
from trainer.safefile import write_safetensors

SHAPE, ROWS, USED, WIDTH, BATCH = (16, 1, 64, 64), 512, 60, 4096, 2


def make_items(folder: Path, count: int) -> EncodedDataset:
    """Random items on disk."""
    items = []
    for number in range(count):
        latent, text = folder / f"{number}.latent", folder / f"{number}.text"
        write_safetensors(latent, {"latent": torch.randn(SHAPE)})
        rows = torch.zeros(1, ROWS, WIDTH, dtype=torch.bfloat16)
        rows[:, :USED] = torch.randn(1, USED, WIDTH)
        write_conditioning(text, {"cross_attn": rows})
        items.append(EncodedItem(latent, text, "", SHAPE))
    return EncodedDataset(tuple(items))


def drop_from_cache(folder: Path) -> None:
    """So that they are read from the disk again."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Batches(Dataset[Any]):
    """A batch an index, for torch's DataLoader."""

    def __init__(self, items: Sequence[EncodedItem], order: BatchOrder, steps: int) -> None:
        self._items, self._batches = items, [order.batch(step) for step in range(steps)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> Any:
        batch = ItemStore(self._items, limit_bytes=0).load(self._batches[step])
        return batch.latents, [item.conditioning for item in batch.items]


def on_the_spot(items: Sequence[EncodedItem], order: BatchOrder, steps: int) -> Iterator[Any]:
    store = ItemStore(items, limit_bytes=0)
    for step in range(steps):
        yield store.load(order.batch(step))


def ahead(items: Sequence[EncodedItem], order: BatchOrder, steps: int) -> Iterator[Any]:
    store = ItemStore(items, limit_bytes=0)

    def draws(step: int) -> list[SampleDraw]:
        return order.batch(step)

    for step in range(steps):
        loaded = store.load(draws(step))
        store.read_ahead(draws(step + 1))
        yield loaded


def by_loader(items: Sequence[EncodedItem], order: BatchOrder, steps: int) -> Iterator[Any]:
    """spawn: what Windows has, and what a process that uses CUDA needs."""
    yield from DataLoader(
        Batches(items, order, steps), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )


def children_megabytes() -> float:
    """Memory of the processes that this one has started."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            found += sum(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS"))
    return found / 1e3


def measure(
    feed: Callable[..., Iterator[Any]], items: Sequence[EncodedItem], steps: int, wait: float
) -> dict[str, float]:
    order = BatchOrder([i.shape for i in items], [1] * len(items), BATCH, seed=1)
    loads, memory = [], 0.0
    started = time.perf_counter()
    for _ in feed(items, order, steps):
        loads.append(time.perf_counter() - started)
        memory = memory or children_megabytes()
        time.sleep(wait)
        started = time.perf_counter()
    rest = sorted(loads[1:])
    return {
        "first load, s": round(loads[0], 3),
        "median, ms": round(1e3 * statistics.median(rest), 2),
        "slowest of a hundred, ms": round(1e3 * rest[int(0.99 * len(rest))], 2),
        "processes, MB": round(memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--wait", type=float, default=0.05, help="seconds of the device's work in a step")
    parser.add_argument(
        "--folder", type=Path, help="where the items are written; a temporary folder by default"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        items = make_items(Path(name), arguments.items).items
        for feed in (on_the_spot, ahead, by_loader):
            drop_from_cache(Path(name))
            found[feed.__name__] = measure(feed, items, arguments.steps, arguments.wait)
            print(f"{feed.__name__:12} {found[feed.__name__]}", flush=True)
    print("peak memory of this process, MB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
