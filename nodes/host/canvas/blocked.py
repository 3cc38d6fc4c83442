"""An output that has nothing to give."""

from __future__ import annotations

from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker


def blocked(why: str | None = None) -> Any:
    """In place of a value: nodes that need it do not run, and the user reads why; without a reason, silently."""
    return ExecutionBlocker(why)
