"""A LoRA in memory: its tensors under our keys, and the metadata that a file of it carries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class LoraWeights(dict[str, Tensor]):
    """A LoRA in our keys (see keys.py), as nodes pass it to one another. The host sees a plain dict of tensors.

    Attributes:
        metadata: text by name, written into the header of a file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(tensors)
        self.metadata: dict[str, str] = dict(metadata or {})
