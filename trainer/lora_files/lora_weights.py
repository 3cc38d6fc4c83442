"""A LoRA in memory: its tensors under our keys, and the metadata that a file of it carries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class LoraWeights(dict[str, Tensor]):
    """A LoRA in our keys (see keys.py), as nodes pass it to one another. The host sees a plain dict of tensors.

    Attributes:
        metadata: text by name, written into the header of a file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(tensors)
        self.metadata: dict[str, str] = dict(metadata or {})


def origin_metadata(
    config: dict[str, Any],
    dataset: str,
    base_model: str,
    steps: int,
    graph: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The metadata of a trained LoRA. safetensors metadata is text only, so values are JSON.

    Args:
        config: TrainConfig.to_dict().
        dataset: the fingerprint of the encoded dataset.
        base_model: the fingerprint of the model.
        steps: optimizer steps done.
        graph: "workflow" and "prompt" as the host hands them to a node; the host's canvas loads "workflow" from a
            dropped .safetensors file.
    """
    metadata = {
        "lora_kiln.config": json.dumps(config),
        "lora_kiln.dataset": dataset,
        "lora_kiln.base_model": base_model,
        "lora_kiln.steps": str(steps),
    }
    for name, value in (graph or {}).items():
        if value is not None:
            metadata[name] = json.dumps(value)
    return metadata
