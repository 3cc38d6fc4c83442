"""How model files name their tensors: the prefix of the diffusion model, and what belongs to a quantised weight."""

from __future__ import annotations

from ..lora_files.keys import lookup
from .safetensors_file import FP8, SafetensorsFile

PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
)  # whole checkpoints, and files of diffusion models alone
SCALE_SUFFIXES = (".scale_weight", ".weight_scale")  # of a layer's fp8 weight: ComfyUI 0.3, and 0.33
QUANTISATION_SUFFIXES = (*SCALE_SUFFIXES, ".scale_input", ".input_scale", ".comfy_quant")
QUANTISATION_MARKER = "scaled_fp8"  # an empty tensor by which ComfyUI 0.3 tells scaled fp8 files


def find_prefix(source: SafetensorsFile) -> str:
    """The prefix of the diffusion model's tensors, "" where they have none."""
    return next((p for p in PREFIXES if any(name.startswith(p) for name in source.entries)), "")


def is_quantisation_detail(name: str) -> bool:
    """Whether a tensor only describes how another is quantised; files of other types leave it out."""
    return name.endswith(QUANTISATION_SUFFIXES) or name.split(".")[-1] == QUANTISATION_MARKER


def find_scale(source: SafetensorsFile, name: str) -> str | None:
    """The name of the scale that belongs to an fp8 weight, None where it has none."""
    if not name.endswith(".weight") or source.entries[name].dtype not in FP8:
        return None
    candidates = (name.removesuffix(".weight") + suffix for suffix in SCALE_SUFFIXES)
    return next((scale for scale in candidates if scale in source.entries), None)


def read_scalar(source: SafetensorsFile, name: str) -> float:
    """A scale's value; the largest where the tensor holds several."""
    return float(source.read(name).float().max())


def layer_names(source: SafetensorsFile) -> dict[str, str]:
    """Every spelling of the file's layers -> their name in the file without prefix, see keys.lookup."""
    prefix = find_prefix(source)
    bare = [name[len(prefix) :] for name in source.entries if name.startswith(prefix)]
    return lookup(
        [n.removesuffix(".weight") for n in bare if not n.endswith(".bias") and not is_quantisation_detail(n)]
    )
