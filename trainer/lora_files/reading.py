"""A LoRA file or folder of any tool -> our keys. Whatever is wrong with it is said in one sentence, before anything
else.

Nothing pickled is ever opened: unpickling runs code that the file brings along.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import KilnError
from .files import PEFT_CONFIG, PEFT_FILE, LoraWeights
from .formulas import layers_of, rank_of, shape_of
from .keys import PREFIX, own_layers, split_key, to_diffusers

DIFFUSERS_METADATA = "lora_adapter_metadata"  # JSON: LoraConfig's fields under "transformer."
FINETRAINERS_METADATA = "lora_config"  # JSON: "r", "lora_alpha", ...


def read_lora(path: Path, names: Mapping[str, str] | None = None) -> LoraWeights:
    """A LoRA in our keys, with its file's metadata.

    Args:
        path: a .safetensors file, or the folder of a peft adapter.
        names: the model's own layers (keys.lookup), for files that spell layers of models other than Wan.

    Raises:
        KilnError: it is missing, damaged, cut off, pickled, not a LoRA, or holds values that are not finite.
    """
    if path.is_dir():
        tensors, metadata = read_safetensors(_peft_weights(path))
        scales: _Scales | None = _peft_scales(path)
    else:
        tensors, metadata = read_safetensors(path)
        scales = _scales_in(metadata)
    check_finite(tensors, path.name)
    lora = to_our_keys(tensors, names, path.name)
    for layer, parts in layers_of(lora).items():
        rank = rank_of(parts)
        alpha = None if scales is None or rank is None else scales.alpha(layer, rank)
        if alpha is not None and "alpha" not in parts and alpha != rank:
            lora[f"{layer}.alpha"] = torch.tensor(float(alpha))
        if scales is not None and "lokr_w1" in parts and "lokr_w2" in parts and scales.whole(layer) != 1.0:
            lora[f"{layer}.lokr_w1"] = parts["lokr_w1"] * scales.whole(layer)
    return LoraWeights(lora, {k: v for k, v in metadata.items() if k not in (DIFFUSERS_METADATA, "format")})


def to_our_keys(
    tensors: Mapping[str, Tensor], names: Mapping[str, str] | None = None, what: str = "the LoRA"
) -> dict[str, Tensor]:
    """Keys of any spelling -> ours.

    Raises:
        KilnError: they are no LoRA's, a layer is incomplete, or two spellings name one tensor.
    """
    split = {key: split_key(key) for key in tensors}
    unknown = [key for key, found in split.items() if found is None]
    layers = own_layers({found[0]: None for found in split.values() if found is not None}, names)
    if not layers or len(unknown) > len(layers):
        raise KilnError(
            f"{what} is not a LoRA: it holds tensors such as {next(iter(unknown), 'none at all')!r}. Choose a "
            f"file that "
            "was made by training a LoRA; whole models belong into a model loader."
        )
    ours = {}
    for key, found in split.items():
        new = key if found is None else f"{layers[found[0]]}.{found[1]}"
        if new in ours:
            raise KilnError(
                f"{what} names {new!r} twice, in two spellings; save it again with the tool it came from."
            )
        ours[new] = tensors[key]
    for layer, parts in layers_of(ours).items():
        if ("lora_A.weight" in parts) != ("lora_B.weight" in parts):
            missing = "lora_B (up)" if "lora_A.weight" in parts else "lora_A (down)"
            raise KilnError(
                f"{what} is incomplete: the layer {layer} lacks {missing}; download or train it again."
            )
        try:
            if parts.get("alpha", torch.ones(())).numel() != 1:
                raise ValueError("its alpha is not one number")
            shape_of(parts)
        except ValueError as error:
            raise KilnError(
                f"{what} is damaged: the layer {layer} cannot be right, {error}; download or train it again."
            ) from error
    return ours


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a file.

    Raises:
        KilnError: it is missing, pickled, damaged or cut off.
    """
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as opened:
            return {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise KilnError(f"{path.name} is damaged ({error}); download or make it again.") from error


def check_safetensors(path: Path) -> None:
    """Look at the first bytes and the size of a file, so that what is wrong can be said plainly.

    Raises:
        KilnError: see read_safetensors.
    """
    if not path.is_file():
        raise KilnError(f"There is no file {path.name}; check the name.")
    size = path.stat().st_size
    if not os.access(path, os.R_OK):
        raise KilnError(f"{path.name} may not be read; give ComfyUI's user permission to read it.")
    with path.open("rb") as file:
        start = file.read(64)
        length = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
        # The magic numbers of others are looked at only now: a header may be as long as they read (0x80, 0x4B50)
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
            header = json.loads(file.read(length))
            end = max((0, *(int(e["data_offsets"][1]) for k, e in header.items() if k != "__metadata__")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KilnError(f"The header of {path.name} is damaged; download or make it again.") from error
    if 8 + length + end > size:
        raise KilnError(
            f"{path.name} is cut off: it has {size} of {8 + length + end} bytes; download or copy it again."
        )


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise KilnError when a value is NaN or infinite."""
    broken = [
        k for k, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t.float()).all())
    ]
    if broken:
        raise KilnError(
            f"{what} holds values that are not numbers, in {len(broken)} of {len(tensors)} tensors, first "
            f"{broken[0]!r}: "
            "its training failed. Use an earlier checkpoint of it."
        )


class _Scales:
    """alpha of a layer, by the fields of a peft config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._alpha: float | None = config.get("lora_alpha", config.get("alpha"))
        self._rank: int | None = config.get("r")
        self._patterns: Mapping[str, Any] = config.get("alpha_pattern") or {}
        self._ranks: Mapping[str, Any] = config.get("rank_pattern") or {}
        self._rs = bool(config.get("use_rslora"))

    def alpha(self, layer: str, rank: int) -> float | None:
        """alpha such that alpha / rank is the scale; rank-stabilised LoRA scales by alpha / sqrt(rank)."""
        alpha = _by_pattern(self._patterns, layer, self._alpha)
        return None if alpha is None else float(alpha) * (math.sqrt(rank) if self._rs else 1)

    def whole(self, layer: str) -> float:
        """alpha / rank of a LoKr layer with two whole factors, whose rank no tensor tells."""
        rank = _by_pattern(self._ranks, layer, self._rank)
        alpha = _by_pattern(self._patterns, layer, self._alpha)
        return float(alpha) / float(rank) if alpha and rank else 1.0


def _by_pattern(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    """The value of a layer, as peft finds it: patterns are expressions for the ends of names.

    What peft.utils.other.get_pattern_key does, in two lines, because importing peft takes seconds and a torchvision
    that fits torch, which a shell without ComfyUI may not have.
    """
    bare = layer.removeprefix(PREFIX)
    for name in (bare, to_diffusers(bare) or bare):
        for pattern, value in patterns.items():
            try:
                fits = re.match(rf"(.*\.)?({pattern})$", name)
            except re.error as error:
                raise KilnError(
                    f"The pattern {pattern!r} in {PEFT_CONFIG} is no regular expression ({error}); save the "
                    "adapter again."
                ) from error
            if fits:
                return value
    return default


def _scales_in(metadata: Mapping[str, str]) -> _Scales | None:
    """What diffusers and finetrainers write beside their tensors; neither writes alpha as a tensor."""
    for key, prefix in ((DIFFUSERS_METADATA, "transformer."), (FINETRAINERS_METADATA, "")):
        try:
            found = json.loads(metadata.get(key, "null"))
        except ValueError:
            continue
        if isinstance(found, dict):
            return _Scales({k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)})
    return None


def _peft_weights(folder: Path) -> Path:
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


def _peft_scales(folder: Path) -> _Scales:
    try:
        config = json.loads((folder / PEFT_CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise KilnError(
            f"{folder.name}/{PEFT_CONFIG} is damaged ({error}); save the adapter again."
        ) from error
    numbers = ("r", "lora_alpha", "alpha")
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), (int, float, type(None))) for name in numbers
    ):
        raise KilnError(
            f"{folder.name}/{PEFT_CONFIG} is damaged: {', '.join(numbers)} are no numbers; save the adapter again."
        )
    kind = str(config.get("peft_type", "LORA"))
    unusual = (config.get("coft"), config.get("block_share"), not config.get("use_cayley_neumann", True))
    if kind not in ("LORA", "LOHA", "LOKR", "OFT") or (kind == "OFT" and any(unusual)):
        raise KilnError(
            f"{folder.name} is a peft adapter of kind {kind} with options that cannot be read here; LoRA, DoRA, LoHa, "
            "LoKr and plain OFT can."
        )
    return _Scales(config)
