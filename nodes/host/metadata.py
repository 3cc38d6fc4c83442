"""Whether files carry what a user wrote, by the host's own setting."""

from __future__ import annotations

from comfy.cli_args import args

from ...trainer.lora_files.lora_weights import LoraWeights
from ...trainer.lora_files.metadata import figures_only, shareable


def metadata_is_written() -> bool:
    """False when the host was started with --disable-metadata."""
    return not args.disable_metadata


def for_output(lora: LoraWeights) -> LoraWeights:
    """A LoRA as it is written into ComfyUI/output."""
    return shareable(lora) if metadata_is_written() else figures_only(lora)
