"""Advice in words from the training and the validation curve: overfitting, underfitting, divergence, weak transfer.

Each sentence carries the numbers it rests on. A curve counts as risen or fallen only beyond its own noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import TrainConfig
from ..dataset.encoded import EncodedItem
from ..events import ValidationPoint, best_of
from ..runs.item_losses import ItemLosses

FLAT = 0.02  # a training loss that fell by less than this share has not fallen
RISE = 0.02  # a validation loss this share above its minimum has risen, if that is also beyond its noise
NOTHING = 0.01  # a validation loss that fell by less than this share has not fallen
MIN_STEPS = 50  # before that, nothing is said of the training loss


def advise(
    losses: Sequence[float],
    points: Sequence[ValidationPoint],
    config: TrainConfig,
    skipped: int = 0,
    on_items: Sequence[str] = (),
) -> list[str]:
    """Sentences for the user; none when all is well or too little is known.

    Args:
        losses: training loss of every step; nan where it was skipped.
        points: measurements so far, oldest first, the first from before training.
        config: the run's settings, named in the advice.
        skipped: steps that were not finite.
        on_items: what `advise_on_items` says.
    """
    if diverging := _diverging(losses, config, skipped):
        return [diverging]  # what else the curves show is its consequence
    found = [
        _overfitting(losses, points, config) or _weak_transfer(losses, points),
        _underfitting(losses, points, config),
        *on_items,
    ]
    return [text for text in found if text]


def advise_on_size(trained: int, whole: int, config: TrainConfig) -> str:
    """A sentence where the adapter has more parameters than the model that it adapts; empty where all is well.

    Args:
        trained: parameters of the adapter.
        whole: parameters of the model.
        config: the run's settings, named in the advice.
    """
    if trained <= whole:
        return ""
    return (
        f"Rank {config.adapter.rank} trains {trained / max(whole, 1):.0%} of the model's own parameters, more than "
        "there are to learn: lower the rank. 16 to 128 is usual."
    )


def advise_on_items(items: Sequence[EncodedItem], found: ItemLosses) -> list[str]:
    """A sentence on the highest and on the lowest of the items that stand out.

    items: those that are trained on, as `found` counts them.
    """
    apart = found.standing_out([item.role for item in items])
    high = [i for i in apart if found.times(i) > 1]
    low = [i for i in apart if found.times(i) <= 1]
    sentences = []
    if high:
        sentences.append(
            f"Item {high[0] + 1}, {items[high[0]].name}, stays at {found.times(high[0]):.2f} times the loss of "
            "the others at the same noise levels: look at the picture and its caption, one of the two may be wrong."
        )
    if low:
        sentences.append(
            f"Item {low[-1] + 1}, {items[low[-1]].name}, stays at {found.times(low[-1]):.2f} times the loss of "
            "the others at the same noise levels: it may be known by heart; lower its repeats, or look for copies."
        )
    return sentences


def _overfitting(
    losses: Sequence[float], points: Sequence[ValidationPoint], config: TrainConfig
) -> str | None:
    best = min((p for p in points if math.isfinite(p.loss)), key=lambda p: p.loss, default=None)
    after = [] if best is None else [p.loss for p in points if p.step > best.step]
    if best is None or len(after) < 2:
        return None
    now = statistics.fmean(after[-2:])
    if now - best.loss <= max(RISE * best.loss, 3 * _noise(points)):
        return None
    place = f"at step {best.step}" if best.step else "before training"
    use = f"Use the checkpoint of step {best.step}; next time raise" if best.step else "Raise"
    return (
        f"Overfitting: the validation loss was lowest {place} ({best.loss:.4f}) and is {now:.4f} now, "
        f"{now / best.loss - 1:.0%} above it, with a training loss of {_recent(losses):.4f}. {use} dropout (now "
        f"{config.adapter.dropout:g}) or weight_decay (now {config.optimizer.weight_decay:g}), train "
        f"{f'about {best.step}' if best.step else 'fewer'} steps, or add images."
    )


def _weak_transfer(losses: Sequence[float], points: Sequence[ValidationPoint]) -> str | None:
    if len(points) < 3 or points[0].step != 0 or _fell(points):
        return None
    fall = _training_fall(losses)
    if fall is None or not fall.real:
        return None
    return (
        f"Weak transfer: the training loss fell from {fall.first:.4f} to {fall.last:.4f}, but on held-out captions "
        f"it is {points[-1].loss:.4f} after {points[0].loss:.4f} before training. Make the images more alike in what "
        "is to be learned, and let the captions name it in the same words everywhere."
    )


def _underfitting(
    losses: Sequence[float], points: Sequence[ValidationPoint], config: TrainConfig
) -> str | None:
    fall = _training_fall(losses)
    if fall is None or fall.real or len(losses) < MIN_STEPS or _fell(points):
        return None
    return (
        f"Underfitting: the training loss stays flat, {fall.first:.4f} at first and {fall.last:.4f} over the last "
        f"{fall.window} of {len(losses)} steps. Raise learning_rate (now {config.optimizer.learning_rate:g}) or rank "
        f"(now {config.adapter.rank}), or train longer."
    )


def _diverging(losses: Sequence[float], config: TrainConfig, skipped: int) -> str | None:
    rate = f"Lower learning_rate (now {config.optimizer.learning_rate:g})."
    if skipped:
        return f"Diverging: {skipped} of {len(losses)} steps had no finite loss or gradient. {rate}"
    finite = [x for x in losses if math.isfinite(x)]
    window = max(10, len(finite) // 20)
    if len(finite) < max(MIN_STEPS, 2 * window):
        return None
    means = [statistics.fmean(finite[i : i + window]) for i in range(0, len(finite) - window + 1, window)]
    last = statistics.fmean(finite[-window:])
    if last < 2 * min(means):
        return None
    return (
        f"Diverging: the training loss is {last:.4f} over the last {window} steps, after {min(means):.4f} at its "
        f"lowest. {rate}"
    )


@dataclass(frozen=True)
class _Fall:
    first: float
    last: float
    window: int
    real: bool  # beyond the noise of the curve and large enough to matter


def _training_fall(losses: Sequence[float]) -> _Fall | None:
    """First against last fifth of the training loss, by the standard error of their difference."""
    finite = [x for x in losses if math.isfinite(x)]
    window = max(10, len(finite) // 5)
    if len(finite) < 2 * window:
        return None
    first, last = finite[:window], finite[-window:]
    drop = statistics.fmean(first) - statistics.fmean(last)
    error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / window)
    real = drop > max(3 * error, FLAT * statistics.fmean(first))
    return _Fall(statistics.fmean(first), statistics.fmean(last), window, real)


def _fell(points: Sequence[ValidationPoint]) -> bool:
    """Whether the validation loss was ever below its first value by more than its noise."""
    best = best_of(points)
    if best is None or len(points) < 2:
        return False
    return points[0].loss - best.loss > max(NOTHING * points[0].loss, 2 * _noise(points))


def _noise(points: Sequence[ValidationPoint]) -> float:
    """Scatter of the validation curve about a smooth one: from its second differences, which a slope does not touch."""
    values = [p.loss for p in points]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return 1.4826 * statistics.median(bends) / math.sqrt(6) if len(bends) >= 3 else 0.0


def _recent(losses: Sequence[float]) -> float:
    finite = [x for x in losses if math.isfinite(x)][-50:]
    return statistics.fmean(finite) if finite else math.nan
