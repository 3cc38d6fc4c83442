"""The layers of text encoders, as each tool spells them.

    comfyui    text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj    ours
    kohya      lora_te_text_model_encoder_layers_0_self_attn_q_proj         one encoder (SD 1.5, SD 2)
               lora_te1_..., lora_te2_..., lora_te3_...                     CLIP-L, CLIP-G, T5 (SDXL, SD3, Flux)
    diffusers  text_encoder.text_model.encoder.layers.0.self_attn.q_proj    also text_encoder_2.

ComfyUI's own loader reads all of them. Their width says which encoder the layers of "lora_te_" are of.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..adapter.protocol import TEXT_ENCODER as PREFIX
from ..errors import KilnError

CLIP_WIDTHS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}  # of CLIP text models, by ComfyUI's name
_NUMBERS = {"clip_l": "1", "clip_g": "2", "t5xxl": "3"}  # kohya's
_BY_NUMBER = {"": "clip_l", "1": "clip_l", "2": "clip_g", "3": "t5xxl"}
_OURS = re.compile(rf"^{re.escape(PREFIX)}(\w+)\.transformer\.(.+)$")
_KOHYA, _DIFFUSERS = re.compile(r"^lora_te([123]?)_(.+)$"), re.compile(r"^text_encoder(?:_([23]))?\.(.+)$")
_CLIP_LAYER = re.compile(r"text_model[._]encoder[._]layers[._](\d+)[._](self_attn|mlp)[._](\w+)")
_T5_LAYER = re.compile(
    r"encoder[._]block[._](\d+)[._]layer[._](\d)[._](SelfAttention|DenseReluDense)[._](\w+)"
)


def is_text_encoder(layer: str) -> bool:
    """Whether one of our layers is a text encoder's."""
    return layer.startswith(PREFIX)


def own_text_layers(widths: Mapping[str, int | None]) -> dict[str, str]:
    """Other tools' spellings of a file's layers of text encoders -> ours; what is not known is left out.

    Args:
        widths: of the input of each layer of the file, by its spelling; None where it is not known.
    """
    found = {spelled: parsed for spelled in widths if (parsed := _parse(spelled))}
    of_clip: dict[str, set[str]] = defaultdict(set)
    for spelled, (number, layer) in found.items():
        own = CLIP_WIDTHS.get(widths[spelled] or 0)
        if own and layer.startswith("text_model.") and not layer.endswith("fc2"):
            of_clip[number].add(own)
    names = {}
    for spelled, (number, layer) in found.items():
        told = of_clip[number] if layer.startswith("text_model.") else {"t5xxl"}
        encoder = next(iter(told)) if len(told) == 1 else _BY_NUMBER[number]
        names[spelled] = f"{PREFIX}{encoder}.transformer.{layer}"
    return names


def _parse(spelled: str) -> tuple[str, str] | None:
    """Number of the encoder and the layer's own name."""
    match = _KOHYA.match(spelled) or _DIFFUSERS.match(spelled)
    if match is None:
        return None
    number, rest = match[1] or "", match[2]
    if clip := _CLIP_LAYER.fullmatch(rest):
        return number, f"text_model.encoder.layers.{clip[1]}.{clip[2]}.{clip[3]}"
    if t5 := _T5_LAYER.fullmatch(rest):
        return number, f"encoder.block.{t5[1]}.layer.{t5[2]}.{t5[3]}.{t5[4]}"
    return None


def spell_text_layers(layers: Iterable[str], format: str) -> dict[str, str]:
    """Our layers of text encoders -> their spelling in a format; other layers are left out.

    Args:
        layers: all of one file.
        format: one of keys.FORMATS.

    Raises:
        KilnError: the format has no name for them.
    """
    own = {layer: _OURS.match(layer) for layer in layers if is_text_encoder(layer)}
    encoders = {match[1] if match else "" for match in own.values()}
    return {layer: _spell(layer, match, format, encoders) for layer, match in own.items()}


def _spell(layer: str, match: re.Match[str] | None, format: str, encoders: set[str]) -> str:
    if format == "comfyui":
        return layer
    encoder, name = (match[1], match[2]) if match else (layer, "")
    if format == "kohya" and encoder in (*_NUMBERS, "clip_h"):
        alone = encoder != "clip_g" and len(encoders) == 1
        number = "" if alone else _NUMBERS.get(encoder, "")
        return f"lora_te{number}_{name.replace('.', '_')}"
    if format == "diffusers" and encoder in ("clip_l", "clip_h", "clip_g"):
        return f"text_encoder{'_2' if encoder == 'clip_g' else ''}.{name}"
    others = "comfyui, kohya or diffusers" if format == "peft" else "comfyui"
    raise KilnError(
        f"{format} has no name for the layers of the text encoder that this LoRA holds, such as {layer}; save it as "
        f"{others}."
    )


def network_of(spelled: str) -> str:
    """What stands before a diffusers name of a text encoder's layer: "text_encoder."; "" for other layers."""
    match = _DIFFUSERS.match(spelled)
    return "" if match is None else spelled[: spelled.index(".") + 1]


def input_width(tensors: Mapping[str, Tensor]) -> int | None:
    """Of one layer's tensors, where they tell it."""
    a = tensors.get("lora_A.weight")
    return None if a is None or a.ndim < 2 else int(a.shape[1])
