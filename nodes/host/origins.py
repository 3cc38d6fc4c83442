"""Which other pages the machine's owner has opened the server to."""

from __future__ import annotations

from comfy.cli_args import args


def opened_origin() -> str:
    """The origin of --enable-cors-header, "*" for all of them, "" where there is none."""
    return (args.enable_cors_header or "").strip().lower().rstrip("/")
