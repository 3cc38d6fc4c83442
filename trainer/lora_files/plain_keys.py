"""Takes out of a LoRA's keys what other tools' wrappers have put into them, and brings rare tensors into usual ones.

_orig_mod. / _checkpoint_wrapped_module. / module.    torch.compile, torch's checkpoint wrapper, DataParallel
.lora_A.<name>.weight                                 an adapter that peft saved under a name of its own
.diff_m                                               a difference of Wan's modulation
.lora_B.bias                                          peft's lora_bias: (alpha / r) times it is added to the bias
.scalar                                               LyCORIS' factor on the whole update
Black Forest Labs' control LoRAs of Flux: whole norms, and an input layer that is wider than the model's
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import KilnError
from .formulas import LayerTensors, scale_of, widened
from .keys import PREFIX

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.|^module\.")
_NAMED = re.compile(r"\.(lora_[AB]|lora_magnitude_vector|lora_embedding_[AB])\.([^.]+)\.weight$")
_BFL_INPUT, _BFL_NORM = "img_in.lora_A.weight", "_norm.scale"
_FIRST_FACTORS = ("lora_B.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff")  # of them one is multiplied


def plain_keys(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The same tensors under keys without wrappers.

    Args:
        tensors: by the file's keys.
        what: the file's name in messages.

    Raises:
        KilnError: it holds several adapters, or two keys become one.
    """
    if _BFL_INPUT in tensors and any(key.endswith(_BFL_NORM) for key in tensors):
        return _flux_control(tensors)
    names = {match[2] for key in tensors if (match := _NAMED.search(key))} - {"default"}
    if len(names) > 1:
        raise KilnError(
            f"{what} holds several adapters, {', '.join(sorted(names)[:5])}; save each as a file."
        )
    plain: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        new = _NAMED.sub(r".\1.weight", _WRAPPERS.sub("", key))
        if new.endswith(".diff_m"):
            new = new.removesuffix(".diff_m") + ".modulation.diff"
        if new in plain:
            raise KilnError(f"{what} names {new!r} twice; save it again with the tool it came from.")
        plain[new] = tensor
    return plain


def _flux_control(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As ComfyUI reads them."""
    ours = {
        PREFIX + key.replace(".lora_B.bias", ".diff_b").replace(_BFL_NORM, "_norm.set_weight"): tensor
        for key, tensor in tensors.items()
    }
    shape = [len(tensors["img_in.lora_B.weight"]), tensors[_BFL_INPUT].shape[1]]
    return {**ours, f"{PREFIX}img_in.reshape_weight": torch.tensor(shape)}


def usual_tensors(layer: LayerTensors) -> LayerTensors:
    """One layer with a factor and a bias of its own multiplied in, where it has them."""
    found = dict(layer)
    scalar = found.pop("scalar", None)
    if scalar is not None:
        name = next((n for n in _FIRST_FACTORS if n in found), None)
        if name is None:
            return layer
        value = widened(found[name])
        found[name] = value * scalar.to(value)
    bias = found.pop("lora_B.bias", None)
    if bias is not None:
        change = widened(bias) * scale_of(layer)
        found["diff_b"] = (
            change.reshape(found["diff_b"].shape) + widened(found["diff_b"]) if "diff_b" in found else change
        )
    return found
