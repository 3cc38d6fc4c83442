"""Inputs that several nodes have: one range each, so that a value that fits one node fits the other."""

from __future__ import annotations

from comfy_api.latest import io


def seed_input(tooltip: str) -> io.Input:
    """0 to 2^64 - 1; stays as it is from run to run."""
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, tooltip=tooltip
    )


def resolution_input(tooltip: str, optional: bool = False) -> io.Input:
    """Pixels, a multiple of 16."""
    return io.Int.Input(
        "resolution", default=512, min=16, max=4096, step=16, optional=optional, tooltip=tooltip
    )


def repeats_input(tooltip: str, optional: bool = False) -> io.Input:
    """How often something is seen in one epoch, 1 to 1000."""
    return io.Int.Input("repeats", default=1, min=1, max=1000, optional=optional, tooltip=tooltip)


def max_frames_input() -> io.Input:
    """4n+1 frames."""
    return io.Int.Input(
        "max_frames",
        default=33,
        min=1,
        max=241,
        step=4,
        optional=True,
        tooltip="Most frames of a clip, 4n+1; 1 trains on a single frame of each. Memory grows with it.",
    )


def rank_input(default: int, tooltip: str, minimum: int = 1) -> io.Input:
    """Rank of a LoRA that is computed, up to 4096; one that is trained has the range of its setting."""
    return io.Int.Input("rank", default=default, min=minimum, max=4096, tooltip=tooltip)


def strength_input(name: str, default: float, tooltip: str, optional: bool = False) -> io.Input:
    """How much of a LoRA, -10 to 10."""
    return io.Float.Input(
        name, default=default, min=-10.0, max=10.0, step=0.05, optional=optional, tooltip=tooltip
    )
