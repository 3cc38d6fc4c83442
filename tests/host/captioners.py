"""Captions by tiny models of the host's own classes; prints JSON. Run by test_captioning.py in the host's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.sd
import comfy.utils
import numpy as np
import tiny_captioners
import torch
from lora_kiln.nodes.host.encoding.captioner import HostCaptioner  # type: ignore[import-not-found]
from PIL import Image


def pictures(count: int, seed: int) -> list[Any]:
    draws = np.random.default_rng(seed)
    return [Image.fromarray(draws.integers(0, 256, (64, 96, 3), np.uint8)) for _ in range(count)]


@torch.inference_mode()
def answers(clip: Any) -> dict[str, Any]:
    """What a model says of two stills, the first again, and a clip; how a clip is shown to it."""
    model = HostCaptioner(clip)
    greedy = {"most_tokens": 12, "temperature": 0.0, "seed": 0}
    with tiny_captioners.no_progress():
        still, other, again = (model.describe(pictures(1, n), "say it", **greedy) for n in (1, 2, 1))
        drawn = [
            model.describe(pictures(1, 1), "say it", **{**greedy, "temperature": 0.9, "seed": n})
            for n in (5, 6, 5)
        ]
        moving = model.describe(pictures(4, 3), "say it", **greedy)
    tokens = model._tokens_of(pictures(4, 3), "say it")
    rows = [row for value in tokens.values() for row in value]
    seen = [tuple(t[0]["data"].shape) for row in rows for t in row if isinstance(t[0], dict)]
    return {
        "texts": [each.text for each in (still, other, again, moving)],
        "drawn": [each.text for each in drawn],
        "cut": still.cut,
        "seen": len(seen),
        "largest": max(max(shape[1:3]) for shape in seen),
        "fingerprint": model.fingerprint,
    }


def refusal(clip: Any) -> str:
    try:
        HostCaptioner(clip)
    except ValueError as error:
        return str(error)
    return ""


hook = comfy.utils.PROGRESS_BAR_HOOK
found: dict[str, Any] = {"refused": refusal(tiny_captioners.clip_l()), "models": {}}
if hasattr(comfy.sd.CLIP, "generate"):  # not on host 0.3.75
    found["models"] = {name: answers(make()) for name, make in tiny_captioners.MODELS.items()}
found["hook stays"] = comfy.utils.PROGRESS_BAR_HOOK is hook
print(json.dumps(found))
