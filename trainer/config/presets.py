"""The recipes in trainer/presets/."""

from __future__ import annotations

from pathlib import Path

import yaml

# By aim, from the guide for Wan 2.1; then by model family, each file with its source.
_FILES: tuple[str, ...] = ("quick_trial", "standard", "character", "style", "edit", "slider")
_FILES += ("sdxl", "flux", "qwen_image", "z_image", "ltx_video")


def _read_presets() -> dict[str, dict[str, float]]:
    """The recipes by name: what each puts on the visible widgets of the training node."""
    found = {}
    for name in _FILES:
        file = Path(__file__).parents[1] / "presets" / f"{name}.yaml"
        values = yaml.safe_load(file.read_text("utf-8"))
        found[values.pop("name")] = values
    return found


PRESETS = _read_presets()

# Wan-Video/Wan2.2, wan/configs/wan_t2v_A14B.py (boundary = 0.875) and wan_i2v_A14B.py (boundary = 0.900)
RANGES: dict[str, dict[str, float]] = {
    "high noise, text to video": {"min_timestep": 0.875, "max_timestep": 1.0},
    "low noise, text to video": {"min_timestep": 0.0, "max_timestep": 0.875},
    "high noise, image to video": {"min_timestep": 0.9, "max_timestep": 1.0},
    "low noise, image to video": {"min_timestep": 0.0, "max_timestep": 0.9},
}
"""What of the noise each expert of Wan 2.2 is for: what each puts on the widgets of Objective Settings."""
