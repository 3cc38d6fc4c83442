"""The one table of key names: how every tool spells the layers and the tensors of a LoRA.

A key is a prefix, a layer and an ending: "lora_unet_" + "blocks_0_self_attn_q" + ".lora_down.weight". Readers turn any
spelling into ours ("diffusion_model.blocks.0.self_attn.q" + ".lora_A.weight"), writers turn ours into any other.

Layers of the families that have a table of names (trainer/families.py) are known in the model's own words and in
diffusers'. Layers of other models keep their spelling until a model's own list of layers says what they are (`lookup`):
underscores cannot be taken apart without one.

    comfyui    diffusion_model.blocks.0.self_attn.q.lora_A.weight, .alpha      also ai-toolkit, diffusion-pipe
    (host)     diffusion_model.blocks.0.self_attn.q.lora_down.weight, .alpha   ComfyUI's TrainLoraNode
    kohya      lora_unet_blocks_0_self_attn_q.lora_down.weight, .alpha         also musubi-tuner; Wan Fun: lora_unet__
    diffusers  transformer.blocks.0.attn1.to_q.lora_A.weight                   also finetrainers
    peft       base_model.model.blocks.0.attn1.to_q.lora_A.weight              beside an adapter_config.json
    (diffsynth) blocks.0.self_attn.q.lora_A.default.weight                     also pipe.dit. in front
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import KilnError
from ..families import FAMILIES, Family, families_like, family_of_layers
from .layer_names import FamilyNames, flat, part_name, split_part

PREFIX = "diffusion_model."  # ours
FORMATS = ("comfyui", "kohya", "diffusers", "peft")  # what can be written

# Ending in a file -> ours. Of two that fit, the longer is meant.
ENDINGS = {
    ".lora_A.weight": "lora_A.weight",
    ".lora_B.weight": "lora_B.weight",
    ".lora_down.weight": "lora_A.weight",
    ".lora_up.weight": "lora_B.weight",
    ".lora.down.weight": "lora_A.weight",
    ".lora.up.weight": "lora_B.weight",
    "_lora.down.weight": "lora_A.weight",
    "_lora.up.weight": "lora_B.weight",
    ".lora_linear_layer.down.weight": "lora_A.weight",
    ".lora_linear_layer.up.weight": "lora_B.weight",
    ".lora_A.default.weight": "lora_A.weight",
    ".lora_B.default.weight": "lora_B.weight",
    ".lora_A": "lora_A.weight",
    ".lora_B": "lora_B.weight",
    ".lora_B.bias": "lora_B.bias",
    ".scalar": "scalar",
    ".lora_mid.weight": "lora_mid.weight",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "lora_magnitude_vector",
    ".lora_magnitude_vector.weight": "lora_magnitude_vector",
    ".lora_magnitude_vector.default.weight": "lora_magnitude_vector",
    ".oft_R.weight": "oft_R.weight",
    ".oft_R.default.weight": "oft_R.weight",
    **{
        f".{name}": name
        for name in ("oft_blocks", "rescale", "diff", "diff_b", "set_weight", "w_norm", "b_norm")
    },
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f".{name}.weight": f"{name}.weight" for name in ("a1", "a2", "b1", "b2")},  # GLoRA
    ".reshape_weight": "reshape_weight",
}
KOHYA_ENDINGS = {"lora_A.weight": ".lora_down.weight", "lora_B.weight": ".lora_up.weight"}
_LONGEST_FIRST = sorted(ENDINGS, key=len, reverse=True)

# Before the layer's name, longest first. Flat ones are followed by names with _ for each dot.
PREFIXES = (
    "base_model.model.diffusion_model.",
    "transformer.base_model.model.",
    "unet.base_model.model.",
    "model.diffusion_model.",
    "base_model.model.",
    PREFIX,
    "transformer.",
    "pipe.dit.",
    "dit.",
    "model.",
    "unet.",
    "",
)
FLAT_PREFIXES = ("lora_transformer_", "lora_unet__", "lora_unet_", "lycoris_")


# of `model_of`: says nothing of the diffusion model
TEXT_ENCODER, UNKNOWN_MODEL = "a text encoder", "an unknown model"
NO_MODEL = frozenset({TEXT_ENCODER, UNKNOWN_MODEL})
_TEXT_ENCODER_LAYER = re.compile(r"^(lora_te|text_encoders?[._]|te[12]?[._])")


_NAMES = {family.name: FamilyNames(family) for family in FAMILIES}


def split_key(key: str) -> tuple[str, str] | None:
    """ "diffusion_model.a.b.lora_up.weight" -> ("diffusion_model.a.b", "lora_B.weight"); None when it is no LoRA
    key."""
    for ending in _LONGEST_FIRST:
        if key.endswith(ending) and len(key) > len(ending):
            return key[: -len(ending)], ENDINGS[ending]
    return None


def to_diffusers(name: str) -> str | None:
    """A layer's own name in diffusers' words, or None when no family's table has it or it is several layers there."""
    found = next((found for names in _NAMES.values() if (found := names.to_diffusers(name))), ())
    return found[0] if len(found) == 1 else None


def from_diffusers(name: str) -> str | None:
    """The inverse of to_diffusers; a part of a layer is "<layer>[i]"."""
    return next((found for names in _NAMES.values() if (found := names.from_diffusers(name))), None)


def _bare(spelled: str) -> Iterable[str]:
    """The layer's name without each prefix that fits."""
    return (spelled[len(p) :] for p in PREFIXES if spelled.startswith(p))


def _without_prefix(spelled: str) -> str:
    return next(spelled[len(p) :] for p in (*FLAT_PREFIXES, *PREFIXES) if spelled.startswith(p))


def own_layers(spelled: Iterable[str], names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Every spelling of a file's layers -> ours: PREFIX and the layer's own name, or the spelling when it is unknown.
    A part of a layer is "<layer>[i]", see layer_names.py.

    Args:
        spelled: prefix and layer, as `split_key` gives them; all of one file.
        names: the model's own layers, from `lookup`; without it only families that its layers tell are recognised.
    """
    layers = list(spelled)
    # "proj_out" and the like are words of many models: a family's only beside its blocks
    tables = [_NAMES[family.name] for family in families_like(map(_without_prefix, layers))]
    return {each: _own_layer(each, names, tables) for each in layers}


def _own_layer(spelled: str, names: Mapping[str, str] | None, tables: Sequence[FamilyNames]) -> str:
    flat_bare = [spelled[len(p) :] for p in FLAT_PREFIXES if spelled.startswith(p)]
    if names is not None:
        for bare in (*_bare(spelled), *flat_bare):
            if bare in names:
                return PREFIX + names[bare]
    for table in tables:
        for bare in flat_bare:
            own = table.from_own(bare) or table.from_diffusers(bare)
            if own is not None:
                return PREFIX + own
        for bare in _bare(spelled):
            # Wan's norm2 means two things
            theirs_only = spelled.startswith(("transformer.", "unet.")) and table.from_diffusers(bare)
            own = (None if theirs_only else table.from_own(bare)) or table.from_diffusers(bare)
            if own is not None:
                return PREFIX + own
    return spelled


def lookup(layers: Iterable[str]) -> dict[str, str]:
    """Every spelling of a model's layers without prefix -> the layer's own name, for `own_layers`; of a part,
    "<layer>[i]".

    Args:
        layers: names of the model's layers, without prefix: "blocks.0.self_attn.q".
    """
    found = list(layers)
    names = {spelling: layer for layer in found for spelling in (flat(layer), layer)}
    tables = [_NAMES[family.name] for family in families_like(found)]
    for layer in found:  # after all own names: Wan's norm2 and diffusers' norm2 are two layers
        for table in tables:
            others = table.to_diffusers(layer)
            if others is None:
                back = table.from_diffusers(layer)
                others = () if back is None or split_part(back)[1] is not None else (back,)
            for i, other in enumerate(others):
                part = layer if len(others) == 1 else part_name(layer, i)
                for spelling in (other, flat(other)):
                    names.setdefault(spelling, part)
            names.setdefault(table.to_kohya(layer)[0], layer)
    return names


def part_widths(layer: str) -> tuple[int, ...]:
    """Outputs by inputs of each part of one of our layers; none for a layer that no table has."""
    bare = layer.removeprefix(PREFIX)
    return next((found for names in _NAMES.values() if len(found := names.part_widths(bare)) > 1), ())


def spell_layer(layer: str, format: str, family: Family | None) -> tuple[str, ...]:
    """Our layer -> the spelling of its parts, mostly one, in one of FORMATS. A layer of unknown origin keeps its own.

    peft and diffusers share diffusers' words.

    Args:
        layer: PREFIX and the layer's own name.
        format: one of FORMATS.
        family: of the whole LoRA, from family_of_layers.

    Raises:
        KilnError: diffusers has no such model or layer.
    """
    if not layer.startswith(PREFIX) or format == "comfyui":
        return (layer,)
    name, names = layer[len(PREFIX) :], None if family is None else _NAMES[family.name]
    if format == "kohya":
        return tuple(f"lora_unet_{part}" for part in (names.to_kohya(name) if names else (flat(name),)))
    prefix = diffusers_prefix(format, family)
    parts = names.to_diffusers(name) if names else None
    if parts is None:
        what = (
            f"layer such as {name} of {names.family.name}" if names else f"model with layers such as {name}"
        )
        raise KilnError(f"diffusers has no {what}; save it as comfyui or kohya.")
    return tuple(prefix + part for part in parts)


def diffusers_prefix(format: str, family: Family | None) -> str:
    """What stands before every layer's name in a file of the format "diffusers" or "peft"."""
    if format == "peft":
        return "base_model.model."
    return family.diffusers_prefix if family else "transformer."


def spell_part(part: str, format: str) -> str:
    """The ending of a key of one of FORMATS: ".lora_down.weight"."""
    return KOHYA_ENDINGS.get(part, "." + part) if format == "kohya" else "." + part


def format_of(keys: Iterable[str]) -> str:
    """The spelling of a file, in words for a person."""
    for key in keys:
        if key.startswith(("lora_unet_", "lora_te", "lycoris_", "lora_transformer_")):
            return "kohya"
        if key.startswith("base_model.model."):
            return "peft"
        if key.startswith(("transformer.", "unet.", "text_encoder.", "text_encoder_2.")):
            return "diffusers"
        if key.startswith((PREFIX, "text_encoders.")):
            return "ComfyUI trainer" if ".lora_up." in key or ".lora_down." in key else "comfyui"
        if ".default." in key or key.startswith(("blocks.", "pipe.")):
            return "DiffSynth"
    return "unknown"


def model_of(layers: Iterable[str], widths: Mapping[str, int] | None = None) -> str:
    """What a LoRA is for, in words: "Wan 1.3B", "Stable Diffusion (UNet)", "an unknown model".

    Args:
        layers: its layers.
        widths: input width of a layer, where known.
    """
    names = list(layers)
    of_model = [name for name in names if not _TEXT_ENCODER_LAYER.search(name)]
    family = family_of_layers(of_model)
    if family is None:
        return UNKNOWN_MODEL if of_model == names else TEXT_ENCODER
    if not family.sizes:
        return family.name
    width = next((w for k, w in (widths or {}).items() if k.endswith("_attn.q")), 0)
    return family.sizes.get(width, f"{family.name} of width {width}" if width else family.name)
