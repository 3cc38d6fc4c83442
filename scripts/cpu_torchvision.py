"""Make `import torchvision` work beside a CPU build of torch.

PyPI's torchvision is built against the CUDA build of torch: beside a CPU torch its compiled operators do not load,
and its import then fails on "operator torchvision::nms does not exist", because it registers a fake kernel for an
operator that nobody declared (seen with torch 2.13.0 and torchvision 0.28.0). Declaring the two operators is enough
for everything that does not call them. Import this module before torchvision (or transformers, or peft).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision, nothing to mend
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def _declare() -> torch.library.Library | None:
    if _compiled_operators_load():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + _BOXES)
    return library


KEEP = _declare()  # the declaration lives as long as this object
