"""Node pack of the tiny Wan: its text encoder, for the demo and the tests on a real server.

Copy or link this folder into `custom_nodes/`. The models load with the host's own nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension


async def comfy_entrypoint() -> ComfyExtension:
    """Imports lie in here because pytest imports this file, without a host."""
    from .nodes import TinyWanExtension

    return TinyWanExtension()
