"""Reads a LoRA file or peft folder of any tool into our keys. save.py is the inverse.

A file that is missing, damaged or no LoRA raises a KilnError that names the fault, before any tensor is used. Pickled
files are never opened: unpickling runs code that the file holds.
"""

from __future__ import annotations

import logging
import math
import os
import struct
from collections import defaultdict
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import KilnError, shortened
from ..parsers import parse_json
from ..patterns import MOST_PATTERNS, Patterns, compile_pattern
from ..safefile import read_tensors
from .formulas import LayerTensors, group_by_layer, listed, rank_of, unknown_keys, widened
from .keys import PREFIX, own_layers, part_widths, split_key, to_diffusers
from .layer_checks import check_layer
from .layer_names import part_name, split_part
from .lora_weights import LoraWeights
from .plain_keys import plain_keys, usual_tensors
from .save import PEFT_CONFIG, PEFT_FILE
from .split_layers import join
from .text_encoder_names import input_width, network_of, own_text_layers

log = logging.getLogger(__name__)
DIFFUSERS_METADATA = "lora_adapter_metadata"  # JSON: LoraConfig's fields under "transformer." or "unet."
MOST_DIMENSIONS = 64  # that torch takes
MOST_TENSORS = 100_000  # the largest models have some thousands
MOST_NAME = 1000  # characters; layers have up to a hundred
DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 1),
}
TEXT_NETWORKS = ("text_encoder.", "text_encoder_2.")  # ... and these
FINETRAINERS_METADATA = "lora_config"  # JSON: "r", "lora_alpha", ...


def read_lora(path: Path, names: Mapping[str, str] | None = None) -> LoraWeights:
    """Read a LoRA into our keys, with its file's metadata.

    Args:
        path: a .safetensors file, or the folder of a peft adapter.
        names: every spelling of the model's layers (keys.lookup); needed for the underscored names of models other
            than Wan.

    Raises:
        KilnError: it is missing, damaged, cut off, pickled, not a LoRA, or holds values that are not finite.
    """
    if path.is_dir():
        tensors, metadata = read_safetensors(_peft_weights(path))
        scaling: PeftScaling | None = _scaling_of_folder(path)
    else:
        tensors, metadata = read_safetensors(path)
        scaling = _scaling_of_metadata(metadata)
    check_finite(tensors, path.name)
    lora = to_our_keys(tensors, names, path.name, scaling)
    if unknown := unknown_keys(lora):
        log.warning(
            "%s holds tensors of no layer, which nothing here applies: %s", path.name, listed(unknown)
        )
    return LoraWeights(lora, {k: v for k, v in metadata.items() if k not in (DIFFUSERS_METADATA, "format")})


def _set_alphas(lora: dict[str, Tensor], scaling: PeftScaling, spelled: Mapping[str, str]) -> None:
    """Put a config's scales into the tensors: as alpha, and into lokr_w1 of layers that have no rank."""
    for layer, tensors in group_by_layer(lora).items():
        rank = rank_of(tensors)
        other = spelled.get(layer, layer)
        alpha = None if rank is None else scaling.alpha(layer, other, rank)
        if alpha is not None and "alpha" not in tensors and alpha != rank:
            lora[f"{layer}.alpha"] = torch.tensor(float(alpha))
        scale = scaling.unfactorised_scale(layer, other)
        if "lokr_w1" in tensors and "lokr_w2" in tensors and scale != 1.0:
            lora[f"{layer}.lokr_w1"] = widened(tensors["lokr_w1"]) * scale


def to_our_keys(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str] | None = None,
    what: str = "the LoRA",
    scaling: PeftScaling | None = None,
) -> dict[str, Tensor]:
    """Rename the keys of a LoRA of any convention to ours.

    Args:
        tensors: by the file's keys.
        names: see `read_lora`.
        what: the LoRA's name in error messages.
        scaling: alphas that are not among the tensors.

    Raises:
        KilnError: they are no LoRA's, a layer is incomplete, or two spellings name one tensor.
    """
    tensors = plain_keys(tensors, what)
    layer_and_part = {key: split_key(key) for key in tensors}
    unknown = [key for key, split in layer_and_part.items() if split is None]
    layers = own_layers({split[0]: None for split in layer_and_part.values() if split is not None}, names)
    layers |= own_text_layers({k: input_width(t) for k, t in group_by_layer(tensors).items()})
    if not layers or len(unknown) > len(layers):
        raise KilnError(
            f"{what} is not a LoRA: it holds tensors such as {next(iter(unknown), 'none at all')!r}. Choose a file "
            "that was made by training a LoRA; whole models belong into a model loader."
        )
    ours = {}
    for key, split in layer_and_part.items():
        new = key if split is None else f"{layers[split[0]]}.{split[1]}"
        if new in ours:
            raise KilnError(
                f"{what} names {new!r} twice, in two spellings; save it again with the tool it came from."
            )
        ours[new] = tensors[key]
    for layer, layer_tensors in group_by_layer(ours).items():
        if ("lora_A.weight" in layer_tensors) != ("lora_B.weight" in layer_tensors):
            missing = "lora_B (up)" if "lora_A.weight" in layer_tensors else "lora_A (down)"
            raise KilnError(
                f"{what} is incomplete: the layer {layer} lacks {missing}; download or train it again."
            )
        try:
            check_layer(layer_tensors)
        except ValueError as error:
            raise KilnError(
                f"{what} is damaged: the layer {layer} cannot be right, {error}; download or train it again."
            ) from error
    spelled = {ours: theirs for theirs, ours in layers.items()}
    if scaling is not None:
        _set_alphas(ours, scaling, spelled)
    for layer, layer_tensors in group_by_layer(ours).items():
        if "lora_B.bias" in layer_tensors or "scalar" in layer_tensors:
            for part in layer_tensors:
                del ours[f"{layer}.{part}"]
            ours |= {f"{layer}.{part}": t for part, t in usual_tensors(layer_tensors).items()}
    return _join_parts(ours, spelled)


def _join_parts(lora: dict[str, Tensor], spelled: Mapping[str, str]) -> dict[str, Tensor]:
    """Put layers together that came in parts; parts that cannot be get back their spelling in the file."""
    layers = group_by_layer(lora)
    parts: dict[str, dict[int, LayerTensors]] = defaultdict(dict)
    for name, tensors in layers.items():
        layer, part = split_part(name)
        if part is not None:
            parts[layer][part] = tensors
    in_parts = {part_name(layer, i) for layer, found in parts.items() for i in found}
    whole = {k: t for k, t in lora.items() if (split_key(k) or (k,))[0] not in in_parts}
    for layer, found in parts.items():
        joined = None if layer in layers else join(found, part_widths(layer))
        if joined is not None:
            whole |= {f"{layer}.{part}": t for part, t in joined.items()}
            continue
        for i, tensors in found.items():
            whole |= {f"{spelled[part_name(layer, i)]}.{part}": t for part, t in tensors.items()}
    return whole


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Raises:
        KilnError: it is missing, pickled, damaged or cut off.
    """
    check_safetensors(path)
    try:
        return read_tensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise KilnError(f"{path.name} is damaged ({error}); download or make it again.") from error


def check_safetensors(path: Path) -> None:
    """Check a file's header and size without reading its tensors, so that the message can name the fault.

    Raises:
        KilnError: it is missing, unreadable, pickled, a Git LFS pointer, damaged or cut off.
    """
    if not path.is_file():
        raise KilnError(f"There is no file {path.name}; check the name.")
    size = path.stat().st_size
    if not os.access(path, os.R_OK):
        raise KilnError(f"{path.name} may not be read; give ComfyUI's user permission to read it.")
    with path.open("rb") as file:
        start = file.read(64)
        length = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
        # Magic numbers of other formats (0x80, 0x4B50) come second: a safetensors header may have that length
        if not 2 <= length <= 100_000_000 or not start[8:].lstrip().startswith(b"{"):
            if start[:2] == b"PK" or start[:1] == b"\x80":
                raise KilnError(
                    f"{path.name} is a pickled file (.pt, .ckpt, .bin), which can run code when it is opened; get the "
                    ".safetensors version of it."
                )
            if start.startswith(b"version https://git-lfs"):
                raise KilnError(f"{path.name} is a Git LFS pointer, not the file itself; run `git lfs pull`.")
            raise KilnError(
                f"{path.name} is not a safetensors file ({size} bytes); download or make it again."
            )
        if 8 + length > size:
            raise KilnError(f"{path.name} is cut off in its header ({size} bytes); download it again.")
        file.seek(8)
        try:
            header = parse_json(file.read(length))
            check_header(header)
            end = max((0, *(e["data_offsets"][1] for k, e in header.items() if k != "__metadata__")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KilnError(
                f"The header of {path.name} is damaged ({shortened(str(error))}); download or make it again."
            ) from error
    if 8 + length + end > size:
        raise KilnError(
            f"{path.name} is cut off: it has {size} of {8 + length + end} bytes; download or copy it again."
        )


def check_header(header: Any) -> None:
    """Whether every tensor of a header is one that torch can hold, and the metadata are texts.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not so.
    """
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are not texts by name")
    if len(header) > MOST_TENSORS:
        raise ValueError(f"it holds {len(header)} tensors")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if len(name) > MOST_NAME:
            raise ValueError(f"it holds a name of {len(name)} characters")
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        if not isinstance(entry["dtype"], str):
            raise ValueError(f"{shortened(repr(name))} has no dtype")
        if not isinstance(shape, list) or not all(_is_size(n) for n in (*shape, start, end)):
            raise ValueError(f"{shortened(repr(name))} has no shape or no place in the file")
        if len(shape) > MOST_DIMENSIONS or math.prod(n or 1 for n in shape) >= 1 << 60:
            raise ValueError(f"{shortened(repr(name))} has {len(shape)} dimensions, or too large ones")
        size = DTYPE_BYTES.get(entry["dtype"])
        if end < start or (size is not None and math.prod(shape) * size != end - start):
            raise ValueError(
                f"{shortened(repr(name))} has {end - start} bytes, which are not those of its shape"
            )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 60


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise KilnError when a value of a file called `what` is NaN or infinite."""
    not_finite = [
        k for k, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t.float()).all())
    ]
    if not_finite:
        raise KilnError(
            f"{what} holds values that are not numbers, in {len(not_finite)} of {len(tensors)} tensors, first "
            f"{not_finite[0]!r}: its training failed. Use an earlier checkpoint of it."
        )


class PeftScaling:
    """The scale of each layer, by the fields of a peft config."""

    def __init__(self, config: Mapping[str, Any], what: str) -> None:
        """what: the config's name in messages. Raises KilnError: a field is of another kind."""
        _check_numbers(config, what)
        self._alpha: float | None = config.get("lora_alpha", config.get("alpha"))
        self._rank: int | None = config.get("r")
        self._alpha_pattern, self._rank_pattern = (
            _patterns(config.get(name) or {}) for name in ("alpha_pattern", "rank_pattern")
        )
        self._rank_stabilised = bool(config.get("use_rslora"))
        self.of_text: dict[
            str, PeftScaling
        ] = {}  # of text encoders, by what stands before their layers' names

    def alpha(self, layer: str, spelled: str, rank: int) -> float | None:
        """alpha such that alpha / rank is the scale; rank-stabilised LoRA scales by alpha / sqrt(rank)."""
        if (network := network_of(spelled)) in self.of_text:
            return self.of_text[network].alpha(layer, spelled.removeprefix(network), rank)
        alpha = _by_pattern(self._alpha_pattern, layer, spelled, self._alpha)
        return None if alpha is None else float(alpha) * (math.sqrt(rank) if self._rank_stabilised else 1)

    def unfactorised_scale(self, layer: str, spelled: str) -> float:
        """alpha / rank of a LoKr layer with neither matrix factorised, whose rank no tensor's shape tells."""
        rank = _by_pattern(self._rank_pattern, layer, spelled, self._rank)
        alpha = _by_pattern(self._alpha_pattern, layer, spelled, self._alpha)
        return float(alpha) / float(rank) if alpha and rank else 1.0


def _check_numbers(config: Mapping[str, Any], what: str) -> None:
    numbers = {name: config.get(name) for name in ("r", "lora_alpha", "alpha")}
    for patterns in ("rank_pattern", "alpha_pattern"):
        found = config.get(patterns) or {}
        if not isinstance(found, dict):
            raise KilnError(f"{what} is damaged: {patterns} holds no names; save the adapter again.")
        numbers |= {f"{patterns} of {name!r}": value for name, value in found.items()}
    for name, value in numbers.items():
        try:
            usable = value is None or (isinstance(value, (int, float)) and math.isfinite(float(value)))
        except OverflowError:
            usable = False
        if not usable:
            raise KilnError(
                f"{what} is damaged: {shortened(name)} is {shortened(repr(value))} and no number; save the adapter "
                "again."
            )


def _patterns(values: Mapping[str, Any]) -> Patterns[Any]:
    """rank_pattern or alpha_pattern of a peft config: values by regular expression, which matches a layer's name or the
    end of it.

    Raises:
        KilnError: a pattern is no regular expression.
    """
    for pattern in islice(values, MOST_PATTERNS):
        what = f"The pattern {shortened(repr(pattern))} in {PEFT_CONFIG}"
        compile_pattern(pattern, what)  # alone, so that it cannot close the parenthesis below
    return Patterns(((rf"(^|\.)({p})$", value) for p, value in values.items()), f"A pattern in {PEFT_CONFIG}")


def _by_pattern(patterns: Patterns[Any], layer: str, spelled: str, default: Any) -> Any:
    """The value of the first pattern that matches a layer, as peft chooses it.

    The same as peft.utils.other.get_pattern_key, not called because importing peft takes seconds and needs a
    torchvision that fits torch, which a shell without ComfyUI may not have.

    Args:
        patterns: of a peft config.
        layer: our name of it.
        spelled: its name in the file; both are tried.
        default: the value where no pattern matches.
    """
    bare = layer.removeprefix(PREFIX)
    for name in dict.fromkeys((bare, to_diffusers(bare) or bare, spelled)):
        value = patterns.first(name)
        if value is not None:
            return value
    return default


def _scaling_of_metadata(metadata: Mapping[str, str]) -> PeftScaling | None:
    """From the metadata that diffusers and finetrainers write; None where there is none. Neither writes alpha as a
    tensor."""
    for key, prefixes in ((DIFFUSERS_METADATA, ("transformer.", "unet.")), (FINETRAINERS_METADATA, ("",))):
        try:
            config = parse_json(metadata.get(key, "null"))
        except ValueError:
            continue
        if not isinstance(config, dict):
            continue
        what = f"The metadata {key} of the LoRA"
        for prefix in prefixes:
            fields = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
            if fields:
                scaling = PeftScaling(fields, what)
                for network in TEXT_NETWORKS if prefix else ():
                    own = {k.removeprefix(network): v for k, v in config.items() if k.startswith(network)}
                    scaling.of_text[network] = PeftScaling(own, what)
                return scaling
    return None


def _peft_weights(folder: Path) -> Path:
    """The file of tensors in a peft adapter's folder; raises KilnError where it or the config is missing."""
    if not (folder / PEFT_CONFIG).is_file() or not (folder / PEFT_FILE).is_file():
        pickled = (
            " (adapter_model.bin is pickled and never opened)"
            if (folder / "adapter_model.bin").is_file()
            else ""
        )
        raise KilnError(
            f"The folder {folder.name} is no peft adapter: it needs {PEFT_CONFIG} and {PEFT_FILE}{pickled}."
        )
    return folder / PEFT_FILE


def _scaling_of_folder(folder: Path) -> PeftScaling:
    """From a peft adapter's config; raises KilnError where it is damaged or of a kind that cannot be read here."""
    try:
        config = parse_json((folder / PEFT_CONFIG).read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no fields")
    except (OSError, ValueError) as error:
        raise KilnError(
            f"{folder.name}/{PEFT_CONFIG} is damaged ({error}); save the adapter again."
        ) from error
    kind = str(config.get("peft_type", "LORA"))
    unsupported = (config.get("coft"), config.get("block_share"), not config.get("use_cayley_neumann", True))
    if kind not in ("LORA", "LOHA", "LOKR", "OFT") or (kind == "OFT" and any(unsupported)):
        raise KilnError(
            f"{folder.name} is a peft adapter of kind {kind} with options that cannot be read here; LoRA, DoRA, LoHa, "
            "LoKr and plain OFT can."
        )
    return PeftScaling(config, f"{folder.name}/{PEFT_CONFIG}")
