"""Several captions through the host's text encoders at once.

The host encodes a prompt by asking each of its encoders (`SDClipModel.encode`) for the prompt's sections of tokens;
only what surrounds those calls differs between models. So each caption is run until an encoder is asked for what is not
known yet; then the sections of all captions go through that encoder together, and the captions are run again with what
came out. Nothing that the host does around its encoders is repeated here.

An encoder may treat a batch otherwise than one text (padding, rounding): `equal_alone` compares one caption with what
the host gives for it alone.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from ....trainer.conditioning import ItemConditioning, tensors_in

Sections = tuple[tuple[int, ...], ...]  # of one caption: tokens
MOST_ENCODERS = 8  # of one CLIP, asked one after the other
RELATIVE_ERROR = 1e-5  # of the largest value: what another order of fp32 sums may change


class _Unknown(BaseException):
    """An encoder was asked for sections that have not been encoded. No Exception: nobody on the way may catch it."""


def encode_together(
    model: torch.nn.Module, captions: int, encode: Callable[[int], ItemConditioning]
) -> list[ItemConditioning] | None:
    """What `encode` gives for each caption by its number; None where the model's encoders cannot be run so.

    Args:
        model: the CLIP's module; its encoders are found in it.
        captions: how many.
        encode: the host's own way for one caption.
    """
    encoders = [m for m in model.modules() if isinstance(m, SDClipModel)]
    done: dict[int, ItemConditioning] = {}
    with _remembering(encoders) as memory:
        for _ in range(MOST_ENCODERS + 1):
            for number in set(range(captions)) - set(done):
                try:
                    done[number] = encode(number)
                except _Unknown:
                    continue
            if len(done) == captions:
                return [done[number] for number in range(captions)]
            if not memory.compute():
                break
    return None


def equal_alone(together: ItemConditioning, alone: ItemConditioning) -> bool:
    """Whether two conditionings are the same but for the order of sums."""
    if together.keys() != alone.keys():
        return False
    one, other = list(tensors_in(together)), list(tensors_in(alone))
    return len(one) == len(other) and all(map(_close, one, other))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return bool(torch.equal(one, other))
    largest = float(other.abs().max()) if other.numel() else 0.0
    return bool(((one - other).abs() <= RELATIVE_ERROR * largest).all())


class _Memory:
    """What encoders gave, and what they were asked for since."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, Sections], tuple[Any, ...]] = {}
        self.wanted: dict[int, dict[Sections, None]] = defaultdict(dict)
        self.original: dict[int, Callable[[list[list[int]]], tuple[Any, ...]]] = {}

    def compute(self) -> bool:
        """Encode all that was wanted, sections of one length together; whether that went well."""
        wanted, self.wanted = self.wanted, defaultdict(dict)
        for encoder, asked in wanted.items():
            by_length: dict[int, list[Sections]] = defaultdict(list)
            for sections in asked:
                by_length[len(sections[0])].append(sections)
            for group in by_length.values():
                batch = [list(section) for sections in group for section in sections]
                output = self.original[encoder](batch)
                if not _splits(output, len(batch)):
                    return False
                start = 0
                for sections in group:
                    self.known[encoder, sections] = _rows(output, start, len(sections))
                    start += len(sections)
        return bool(wanted)


@contextmanager
def _remembering(encoders: Sequence[Any]) -> Iterator[_Memory]:
    """Encoders answer from memory, for this thread: a run in the background may be using them too."""
    memory, thread = _Memory(), threading.get_ident()

    def answer(number: int, tokens: Any) -> Any:
        original = memory.original[number]
        if threading.get_ident() != thread or not _plain(tokens):
            return original(tokens)
        sections = tuple(tuple(section) for section in tokens)
        known = memory.known.get((number, sections))
        if known is None:
            memory.wanted[number][sections] = None
            raise _Unknown
        return _rows(known, 0, len(sections))  # a copy: weights are multiplied in place

    try:
        for number, encoder in enumerate(encoders):
            memory.original[number] = encoder.encode
            encoder.encode = lambda tokens, number=number: answer(number, tokens)
        yield memory
    finally:
        for encoder in encoders:
            vars(encoder).pop("encode", None)


def _plain(tokens: Any) -> bool:
    """Whether sections are of one length and hold numbers only, no embeddings."""
    return bool(tokens) and all(
        len(section) == len(tokens[0]) and all(isinstance(t, int) for t in section) for section in tokens
    )


def _splits(output: Any, rows: int) -> bool:
    """Whether an encoder's output has a row for each section: states, pooled or None, masks."""
    values = [output[0], *([output[1]] if output[1] is not None else [])]
    if len(output) > 2:
        if set(output[2]) - {"attention_mask"}:
            return False
        values += output[2].values()
    return all(isinstance(v, Tensor) and len(v) == rows for v in values)


def _rows(output: tuple[Any, ...], start: int, count: int) -> tuple[Any, ...]:
    """A copy of some rows of an encoder's output."""

    def cut(value: Any) -> Any:
        return None if value is None else value[start : start + count].clone()

    extra = [{name: cut(value) for name, value in output[2].items()}] if len(output) > 2 else []
    return (cut(output[0]), cut(output[1]), *extra)
