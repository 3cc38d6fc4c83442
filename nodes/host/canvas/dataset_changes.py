"""Tells every open page that items of a dataset are other ones now."""

from __future__ import annotations

from collections.abc import Sequence

from server import PromptServer

EVENT = "lora_kiln.dataset"


def tell_pages(folder: str, names: Sequence[str]) -> None:
    """
    Args:
        folder: as the Load Dataset node names it.
        names: of the items; empty when any may have changed.
    """
    PromptServer.instance.send_sync(EVENT, {"folder": folder, "names": list(names)})
