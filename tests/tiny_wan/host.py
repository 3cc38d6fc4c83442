"""Open a ComfyUI folder inside this process: `open_host("path/to/ComfyUI")`.

For the scripts of this folder; the node pack never needs it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

KEEP_ALIVE: list[torch.library.Library] = []
"""Operator definitions vanish with their Library object."""


def open_host(folder: str | Path) -> Path:
    """Put ComfyUI first on the import path and set it to the CPU. Call it before any import of `comfy`.

    Raises:
        SystemExit: `folder` is not a ComfyUI.
    """
    folder = Path(folder).expanduser().resolve()
    if not (folder / "comfy" / "sd.py").is_file():
        raise SystemExit(
            f"{folder} is not a ComfyUI folder (it has no comfy/sd.py): pass one, or set COMFYUI_DIR"
        )
    sys.path.insert(0, str(folder))
    sys.argv = [sys.argv[0], "--cpu"]
    define_torchvision_operators()
    import comfy.options

    comfy.options.enable_args_parsing()
    return folder


def define_torchvision_operators() -> None:
    """Make `import torchvision` work beside a torch build that its compiled operators do not match.

    It then only lacks `nms`, which nothing here calls, but it refuses to import without the operator's
    schema.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEEP_ALIVE.append(library)
