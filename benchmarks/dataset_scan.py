"""What looking at a folder costs, as a ratio to Pillow's own decoding of the same files in the same run:

    python -m benchmarks.dataset_scan [--files 40] [--known 5000]

For each kind of file the processor time of `measure_file` (decode, hash, look for blur, near-duplicates and writing)
and that of opening and decoding alone take turns, file by file; medians. Then a folder of --known items: its first
scan, and one when all of it is known, in processor time and by the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from PIL import Image

from tests.media import scene
from trainer.dataset.files import folder_state
from trainer.dataset.scan import measure_file, scan_folder

KINDS = {
    "jpeg 640 x 512": ("jpg", (640, 512)),
    "jpeg 4000 x 3000": ("jpg", (4000, 3000)),
    "png 1024 x 1024": ("png", (1024, 1024)),
    "webp 1024 x 1024": ("webp", (1024, 1024)),
}


def decode(path: Path) -> None:
    """All that Pillow does."""
    with Image.open(path) as opened:
        opened.load()


def in_turns(paths: Sequence[Path], contestants: Sequence[Callable[[Path], object]]) -> list[float]:
    """Median processor time of each on a file, in seconds."""
    times: list[list[float]] = [[] for _ in contestants]
    for contestant in contestants:
        contestant(paths[0])  # imports
    for path in paths:
        for found, contestant in zip(times, contestants, strict=True):
            start = time.thread_time()
            contestant(path)
            found.append(time.thread_time() - start)
    return [median(found) for found in times]


def by_kind(folder: Path, files: int) -> list[tuple[str, float, float]]:
    """Kind, seconds to decode, seconds to look at one file."""
    rows = []
    for number, (name, (ending, size)) in enumerate(KINDS.items()):
        place = folder / str(number)
        place.mkdir()
        paths = [place / f"{n}.{ending}" for n in range(max(2, files * 640 * 512 // (size[0] * size[1])))]
        for seed, path in enumerate(paths):
            scene(seed, size).save(path, quality=90)
        rows.append((name, *in_turns(paths, (decode, measure_file))))
    return rows


def known(folder: Path, items: int) -> list[tuple[str, float, float]]:
    """What, seconds of the clock, seconds of all processors."""
    (place := folder / "known").mkdir()
    scene(0, (64, 64)).save(folder / "one.png")
    data = (folder / "one.png").read_bytes()
    for number in range(items):
        (place / f"photo {number}.png").write_bytes(data)
        (place / f"photo {number}.txt").write_text(f"a caption of number {number}")
    cache = folder / "cache"
    return [
        timed(f"first scan of {items}", lambda: scan_folder(place, facts_cache=cache)),
        timed("the same, known", lambda: scan_folder(place, facts_cache=cache)),
        timed("whether anything has changed", lambda: folder_state(place, False)),
    ]


def timed(name: str, work: Callable[[], object]) -> tuple[str, float, float]:
    """One row."""
    clock, processors = time.perf_counter(), time.process_time()
    work()
    return name, time.perf_counter() - clock, time.process_time() - processors


def table(rows: Sequence[tuple[str, float, float]], head: tuple[str, str, str], last: str) -> str:
    """Markdown; `last` is "ratio" for a column of its own."""
    lines = ["| " + " | ".join((*head, *([last] if last else []))) + " |"]
    lines.append("| --- " * (3 + bool(last)) + "|")
    for name, one, other in rows:
        ratio = [f"{other / one:.1f} x"] if last else []
        lines.append(
            "| " + " | ".join([name, f"{one * 1000:.1f} ms", f"{other * 1000:.1f} ms", *ratio]) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="What looking at a dataset folder costs.")
    parser.add_argument(
        "--files", type=int, default=40, help="640-pixel jpegs; of larger ones as many pixels"
    )
    parser.add_argument("--known", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(table(by_kind(folder, options.files), ("file", "decoding", "looking at it"), "ratio"))
        print()
        print(table(known(folder, options.known), ("items", "clock", "processors"), ""))


if __name__ == "__main__":
    main()
