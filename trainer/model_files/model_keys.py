"""How model files name their tensors: the prefix of the diffusion model, and what belongs to a quantised weight."""

from __future__ import annotations

import math
from collections.abc import Collection

from ..errors import KilnError
from ..lora_files.keys import lookup
from .safetensors_file import FLOATS, FP8, SafetensorsFile

PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
)  # whole checkpoints, and files of diffusion models alone
SCALE_SUFFIXES = (".scale_weight", ".weight_scale")  # of a layer's fp8 weight: ComfyUI 0.3, and 0.33
INPUT_SCALES = ("scale_input", "input_scale")  # of what comes into a layer; its weight is the same without
QUANTISATION_SUFFIXES = (
    *SCALE_SUFFIXES,
    *(f".{name}" for name in INPUT_SCALES),
    ".weight_scale_2",
    ".comfy_quant",
)
NO_SCALES = ("bias", "scale_shift_table")  # a bias's own, and a parameter of models
QUANTISATION_MARKER = "scaled_fp8"  # an empty tensor by which ComfyUI 0.3 tells scaled fp8 files


def find_prefix(source: SafetensorsFile) -> str:
    """The prefix of the diffusion model's tensors, "" where they have none."""
    return next((p for p in PREFIXES if any(name.startswith(p) for name in source.entries)), "")


def is_quantisation_detail(name: str) -> bool:
    """Whether a tensor only describes how another is quantised; files of other types leave it out."""
    return name.endswith(QUANTISATION_SUFFIXES) or name.split(".")[-1] == QUANTISATION_MARKER


def packed_weights(source: SafetensorsFile) -> list[str]:
    """The weights whose values are packed or of a kind that no float is: int8, fp4, nf4 and the like. Whole numbers of
    other tensors, such as positions, are none."""
    return [
        entry.name
        for entry in source.entries.values()
        if entry.dtype not in FLOATS and entry.name.rpartition(".")[2] in ("weight", "qweight")
    ]


def belongs_to_packed(name: str, packed: Collection[str]) -> bool:
    """Whether a tensor is a packed weight, or describes one: its scales, tables and offsets lie beside or below it, as
    layer.weight_scale, layer.comfy_quant and layer.weight.absmax do."""
    module, _, last = name.rpartition(".")
    above = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
    if any(each in packed for each in above):
        return True
    return last != "bias" and any(f"{module}.{kind}" in packed for kind in ("weight", "qweight"))


def find_scale(source: SafetensorsFile, name: str) -> str | None:
    """The name of the scale that belongs to an fp8 tensor, None where it has none.

    Raises:
        KilnError: it has a scale of a kind that is not known here, without which its values are wrong, or it is no fp8
            and has a scale other than 1.
    """
    module, _, last = name.rpartition(".")
    layer = module if last == "weight" else name
    if source.entries[name].dtype not in FP8:
        for scale in (layer + suffix for suffix in SCALE_SUFFIXES if layer + suffix in source.entries):
            if read_scalar(source, scale) != 1:
                raise KilnError(
                    f"{source.path.name} holds {name} in {source.entries[name].dtype} with {scale}, a scale that only "
                    "fp8 has; use the fp16 or bf16 file of the model."
                )
        return None
    beside = source.by_module.get(module, [])
    if last != "weight":
        beside = [n for n in beside if n.startswith(f"{name}_")]
    own = [n for n in (*beside, *source.by_module.get(name, ())) if "scale" in n[len(layer) :]]
    own = [n for n in own if not n[len(layer) + 1 :].startswith(NO_SCALES)]
    known = [layer + suffix for suffix in SCALE_SUFFIXES if layer + suffix in own]
    for unknown in own:
        if unknown not in known and not unknown.endswith(INPUT_SCALES):
            raise KilnError(
                f"{source.path.name} holds {name} in fp8 with {unknown}, a scale of a kind that cannot be read here; "
                "use the fp16 or bf16 file of the model."
            )
    return known[0] if known else None


def read_scalar(source: SafetensorsFile, name: str) -> float:
    """A scale's value.

    Raises:
        KilnError: it holds several, is no float, or none by which a weight can be: not finite, or negative.
    """
    shape = source.entries[name].shape
    if math.prod(shape) != 1:
        raise KilnError(
            f"{name} of {source.path.name} holds {' x '.join(map(str, shape))} scales, and one for the whole weight is "
            "what can be read here; use the fp16 or bf16 file of the model, or fp8 with one scale."
        )
    value = float(source.read(name).float())
    if not 0 <= value < math.inf:
        raise KilnError(
            f"{name} of {source.path.name} is {value}, by which no weight can be scaled; get the file again."
        )
    return value


def layer_names(source: SafetensorsFile) -> dict[str, str]:
    """Every spelling of the file's layers -> their name in the file without prefix, see keys.lookup."""
    prefix = find_prefix(source)
    bare = [name[len(prefix) :] for name in source.entries if name.startswith(prefix)]
    return lookup(
        [n.removesuffix(".weight") for n in bare if not n.endswith(".bias") and not is_quantisation_detail(n)]
    )
