"""LoRA Kiln: train, apply and save LoRAs inside a ComfyUI graph.

ComfyUI imports this file at start-up, pytest imports it when it collects tests. So nothing heavy and nothing
of the host is imported here: the nodes (and torch, peft, diffusers) load when the host asks for them.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> Any:
    """Called by the host once at start-up; returns the ComfyExtension that lists our nodes."""
    from .nodes.extension import LoraKilnExtension

    return LoraKilnExtension()
