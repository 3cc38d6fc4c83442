"""Nodes for the tests only: they look inside the running server and make things go wrong on purpose."""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """Called by the host."""
    from .probes import ProbeExtension

    return ProbeExtension()
