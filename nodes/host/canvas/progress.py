"""What a node tells the canvas while it works. Safe from any thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import ComfyAPISync
from PIL import Image
from server import PromptServer

INTERVAL_SECONDS = 0.1  # at most this often; a fast run must not flood the socket


class NodeProgress:
    """The host's progress bar on one node, and the text under it."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._api = ComfyAPISync()
        self._last = 0.0

    def show(self, value: int, total: int, text: str = "", picture: Image.Image | None = None) -> None:
        """Move the bar to value of total, with a picture on the node; skipped when the last message is fresh, never at
        the end."""
        now = time.monotonic()
        if value < total and now - self._last < INTERVAL_SECONDS:
            return
        self._last = now
        with suppress(
            RuntimeError
        ):  # the host is closing: its executor takes nothing any more, and nobody looks
            self._api.execution.set_progress(
                value, max(total, 1), node_id=self._node_id, preview_image=picture
            )
        if text:
            self.say(text)

    def step(self, value: int, total: int, text: str = "", picture: Image.Image | None = None) -> None:
        """Move the bar, and end the node if the user has interrupted: for work on the prompt's own thread."""
        throw_exception_if_processing_interrupted()
        self.show(value, total, text, picture)

    def say(self, text: str) -> None:
        """Put a text on the node."""
        server = PromptServer.instance
        server.send_progress_text(text, self._node_id, server.client_id)


def progress_callback(node_id: str) -> Callable[[int, int], None]:
    """Moves the node's bar; the user's interrupt ends the work."""
    progress = NodeProgress(node_id)

    def tick(done: int, total: int) -> None:
        throw_exception_if_processing_interrupted()
        share = round(1000 * done / max(total, 1))
        progress.show(share, 1000, f"{share / 10:.0f} %")

    return tick
