"""Encoding what is not on disk yet: first all pixels, in batches of one size, then what of them is given to the model,
then all captions.

So the host holds the VAE and then the text encoder on the device, each once. Files appear one by one: an interruption
keeps what is done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import KilnError, shortened
from ..safefile import write_safetensors
from .buckets import Bucket, BucketOptions
from .caption_variants import caption_variants
from .encode_jobs import Job, captions_of, class_captions, job_of, variants_of
from .encode_progress import OnProgress, Tracker
from .encoded import (
    EncodedDataset,
    EncodedItem,
    Encoder,
    PixelSize,
    complete_conditioning,
    is_kept_whole,
    is_whole,
    latent_shape,
    learns_nothing,
)
from .items import Dataset, Item
from .loading import Pixels, crop_offset, load_controls, load_pixels
from .pixels import shown
from .remarks import mask_remarks, names_of
from .video import stride_of

BATCH_ITEMS = 8
BATCH_TEXTS = 8
BATCH_PIXELS = 4 << 20  # of all frames of a batch: four stills of 1024 x 1024


def encode_dataset(
    dataset: Dataset,
    encoder: Encoder,
    cache: Path,
    options: BucketOptions,
    on_progress: OnProgress = lambda progress: None,
    guide_dropout: float = 0.0,
) -> EncodedDataset:
    """Encode what is not in the cache yet.

    Args:
        dataset: items and captions.
        encoder: the graph's VAE and CLIP.
        cache: folder of the encoded files; made when missing.
        options: training sizes.
        on_progress: called before each batch and after each file; may raise to stop (what is done stays done).
        guide_dropout: probability 0-1 of a sample without what `encoder.encode_guide` gives.

    Raises:
        KilnError: a file cannot be read, the text encoder gives what cannot be kept, the masks keep nothing of any
            item, nothing is given that guide_dropout could leave out, or the disk is full.
    """
    jobs = [
        [job_of(item, options, variant, encoder, cache) for variant in range(variants_of(item))]
        for item in dataset.items
    ]
    captions = [
        captions_of(item, group[0], encoder, cache) for item, group in zip(dataset.items, jobs, strict=True)
    ]
    latents = {job.path: job for group in jobs for job in group}
    guides = {job.guide: job for group in jobs for job in group if job.guide is not None}
    texts = dict(pair for group in captions for pair in group)
    looked_at = any(seen for _, seen in texts.values())
    if guide_dropout and (looked_at or not guides):
        raise KilnError(_no_dropout(guide_dropout, looked_at))
    missing_latents = [job for path, job in latents.items() if not is_whole(path)]
    missing_guides = [job for path, job in guides.items() if not is_kept_whole(path)]
    missing_texts = [(path, *text) for path, text in texts.items() if not is_kept_whole(path)]
    now = len(missing_latents) + len(missing_guides) + len(missing_texts)
    total = len(latents) + len(guides) + len(texts)
    tracker = Tracker(total - now, total, on_progress)
    if now:
        encoder.make_room()
    _encode_latents(missing_latents, encoder, options.fps, tracker)
    _encode_guides(missing_guides, encoder, options.fps, tracker)
    _encode_texts(missing_texts, encoder, options.fps, tracker)
    items = [
        _encoded(item, j, c, options.fps, guide_dropout)
        for item, j, c in zip(dataset.items, jobs, captions, strict=True)
    ]
    remarks = tuple(_mask_remarks(dataset.items, items))
    kept = dict.fromkeys(
        word for item in dataset.items if item.class_words for word in item.class_words.words
    )
    return EncodedDataset(
        tuple(items),
        now,
        trigger_word=dataset.trigger_word,
        class_word=" | ".join(kept),
        remarks=remarks,
    )


def _no_dropout(share: float, looked_at: bool) -> str:
    """Why a share of samples cannot go without what is given beside the text."""
    if looked_at:
        why = "the text encoder looks at pictures, without which a caption would be another one"
    else:
        why = "no item has a first frame or a control picture that could be left out"
    return f"first_frame_dropout is {share:g}, and {why}; set it to 0."


def _mask_remarks(items: Sequence[Item], encoded: Sequence[EncodedItem]) -> Iterator[str]:
    """On items of which the masks keep nothing, as they may after cropping.

    Raises:
        KilnError: so it is with all that are trained on.
    """
    nothing = [item for item, e in zip(items, encoded, strict=True) if learns_nothing(e)]
    trained = sum(i.role != "validation" for i in items)
    if trained and sum(i.role != "validation" for i in nothing) == trained:
        raise KilnError(
            f"The masks keep nothing of all {trained} items after cropping ({names_of(i.path for i in nothing)}), so "
            "nothing would be learned; mend them or switch masks off."
        )
    yield from mask_remarks((), (), [i.path for i in nothing])


def _encode_latents(jobs: Sequence[Job], encoder: Encoder, fps: float, tracker: Tracker) -> None:
    by_bucket: dict[Bucket, list[Job]] = defaultdict(list)
    for job in jobs:
        by_bucket[job.bucket].append(job)
    tracker.begin("image", sum(_pixels(job.bucket) for job in jobs))
    for bucket, group in by_bucket.items():
        size = max(1, min(BATCH_ITEMS, BATCH_PIXELS // _pixels(bucket)))
        for start in range(0, len(group), size):
            part = group[start : start + size]
            tracker.now(shown(Path(part[0].item.path.name)))
            loaded = [load_pixels(job.item, bucket, fps, job.variant) for job in part]
            latents = encoder.encode_pixels(np.stack([p.frames for p in loaded]))
            for job, pixels, latent in zip(part, loaded, latents, strict=True):
                write_safetensors(job.path, _pack_latent(latent, pixels))
                name = shown(Path(job.item.path.name))
                tracker.wrote(job.path.stat().st_size, _pixels(bucket), name)
            tracker.batch_done()


def _encode_guides(jobs: Sequence[Job], encoder: Encoder, fps: float, tracker: Tracker) -> None:
    tracker.begin("image", sum(_pixels(job.bucket) for job in jobs))
    for job in jobs:
        assert job.guide is not None
        tracker.now(name := shown(Path(job.item.path.name)))
        frames = load_pixels(job.item, job.bucket, fps, job.variant).frames
        controls = load_controls(job.item, job.bucket, fps, job.variant)
        complete_conditioning(job.guide, encoder.encode_guide(job.item, frames, controls))
        tracker.wrote(job.guide.stat().st_size, _pixels(job.bucket), name)
        tracker.batch_done()


def _encode_texts(
    missing: Sequence[tuple[Path, str, Job | None]], encoder: Encoder, fps: float, tracker: Tracker
) -> None:
    """In batches; one by one where the text encoder looks at an item's pictures."""
    tracker.begin("caption", len(missing))
    plain = [(path, caption) for path, caption, seen in missing if seen is None]
    for start in range(0, len(plain), BATCH_TEXTS):
        part = plain[start : start + BATCH_TEXTS]
        tracker.now(_beginning(part[0][1]))
        conditionings = encoder.encode_texts([caption for _, caption in part])
        for (path, caption), conditioning in zip(part, conditionings, strict=True):
            complete_conditioning(path, conditioning)
            tracker.wrote(path.stat().st_size, 1, _beginning(caption))
        tracker.batch_done()
    for path, caption, seen in missing:
        if seen is None:
            continue
        tracker.now(_beginning(caption))
        if encoder.text_sees_first_frame(seen.item):
            pictures = [load_pixels(seen.item, seen.bucket, fps, seen.variant).frames[:1]]
        else:
            pictures = load_controls(seen.item, seen.bucket, fps, seen.variant)
        complete_conditioning(path, encoder.encode_text(caption, pictures))
        tracker.wrote(path.stat().st_size, 1, _beginning(caption))
        tracker.batch_done()


def _beginning(caption: str) -> str:
    """Of a caption, in one line and quotes."""
    return repr(shortened(" ".join(caption.split()), 40))


def _pixels(bucket: Bucket) -> int:
    return bucket.frames * bucket.height * bucket.width


def _pack_latent(latent: Tensor, pixels: Pixels) -> dict[str, Tensor]:
    packed = {"latent": latent.float().cpu().contiguous().clone()}
    if pixels.mask is not None:
        packed["mask"] = latent_mask(torch.from_numpy(pixels.mask), tuple(latent.shape))
    return packed


def latent_mask(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask of pixels (H, W) in 0..1 -> (1, [F,] h, w) of a latent of this shape: the mean over each latent cell."""
    small = torch.nn.functional.interpolate(mask[None, None].float(), shape[-2:], mode="area")[0]
    return small.reshape(1, *[1] * (len(shape) - 3), *shape[-2:]).expand(1, *shape[1:]).contiguous()


def _encoded(
    item: Item,
    jobs: list[Job],
    captions: list[tuple[Path, tuple[str, Job | None]]],
    fps: float,
    guide_dropout: float,
) -> EncodedItem:
    variation = item.caption_variation
    dropout = variation.dropout if variation else 0.0
    orders = len(caption_variants(item.caption, variation))
    classes = len(class_captions(item))
    texts = [path for path, _ in captions]
    sees_controls = any(seen for _, (_, seen) in captions)
    return EncodedItem(
        jobs[0].path,
        texts[0],
        item.caption,
        latent_shape(jobs[0].path),
        item.repeats,
        item.role,
        item.loss_weight,
        more_latents=tuple(job.path for job in jobs[1:]),
        more_texts=tuple(texts[1:orders]),
        class_texts=tuple(texts[orders : orders + classes]),
        empty_text=texts[-1] if dropout else None,
        caption_dropout=dropout,
        masked=item.masked,
        sizes=tuple(_pixel_size(job) for job in jobs),
        frame_rate=_frame_rate(jobs[0], fps),
        guides=(guides := tuple(job.guide for job in jobs if job.guide is not None)),
        guide_dropout=guide_dropout if guides else 0.0,
        source=item.path,
        words=() if sees_controls else tuple(text for _, (text, _) in captions)[:orders],
    )


def _pixel_size(job: Job) -> PixelSize:
    facts, bucket = job.item.facts, job.bucket
    left, top = crop_offset(job.item, bucket, job.variant)
    return PixelSize(facts.width, facts.height, left, top, bucket.width, bucket.height)


def _frame_rate(job: Job, fps: float) -> float:
    """Of the frames that are trained on: the file's own where every frame is taken."""
    if job.bucket.frames == 1:
        return 0.0
    own = job.item.facts.fps
    return own if own and stride_of(own, fps) == 1 else fps
