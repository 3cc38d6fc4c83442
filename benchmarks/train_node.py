"""Inputs of the host's TrainLoraNode, of whichever generation."""

from __future__ import annotations

from typing import Any

_DEFAULTS: dict[str, Any] = {
    "batch_size": 1,
    "grad_accumulation_steps": 1,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 0,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "algorithm": "LoRA",
    "existing_lora": "[None]",
    "gradient_checkpointing": True,
    # 0.33 only
    "quantized_backward": False,
    "checkpoint_depth": 1,
    "offloading": False,
    "bucket_mode": False,
    "bypass_mode": False,
}


def input_names(node: Any) -> set[str]:
    """What the node of this host takes."""
    return {i.id for i in node.define_schema().inputs}


def host_inputs(node: Any, **values: Any) -> dict[str, list[Any]]:
    """Everything as a list, as the node wants it; what this host's node does not know is left out."""
    known = input_names(node)
    everything = {k: v for k, v in {**_DEFAULTS, **values}.items() if k in known}
    return {k: v if isinstance(v, list) else [v] for k, v in everything.items()}
