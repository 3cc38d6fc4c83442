"""The size of a dataset's largest item from what earlier scans have measured: no file is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .browse import Part
from .buckets import Bucket, BucketOptions, bucket_of, fit_frames, fit_size
from .facts_cache import FactsCache
from .files import find_files
from .items import Item
from .pixels import is_clip

FRAMES_PER_LATENT = 4  # of video VAEs; the first frame stands alone


def largest_item(folder: Path, part: Part, options: BucketOptions, facts_cache: Path) -> Bucket | None:
    """The bucket with most latent cells; None where the folder holds no media file.

    A file that has not been measured yet counts as a square of the whole resolution, and as a clip of all frames where
    its ending says that it is one.

    Args:
        folder: must exist.
        part: which of its items.
        options: training sizes.
        facts_cache: folder of the measurements of earlier scans.
    """
    sizes = _sizes(folder, part, options, facts_cache)
    return max(sizes, key=latent_cells, default=None)


def latent_cells(bucket: Bucket) -> int:
    """In proportion to the memory that an item takes while it is trained on."""
    return (1 + (bucket.frames - 1) // FRAMES_PER_LATENT) * bucket.height * bucket.width


def _sizes(folder: Path, part: Part, options: BucketOptions, facts_cache: Path) -> Iterator[Bucket]:
    cache = FactsCache(facts_cache, folder)
    width, height = fit_size(options.resolution, options.resolution, options.resolution)
    for path in find_files(folder, part.recursive, part.also, part.controls).media:
        facts = cache.known(path)
        if facts is not None:
            yield bucket_of(Item(path, facts), options)
        else:
            frames = fit_frames(options.max_frames, options.max_frames) if is_clip(path) else 1
            yield Bucket(frames, height, width)
