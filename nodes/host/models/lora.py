"""A LoRA onto a MODEL and CLIP, through the host's own patching, so that it is applied exactly as the host would."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.patcher_extension
import comfy.sampler_helpers
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor, nn

from ....trainer.errors import KilnError
from ....trainer.lora_files import formulas, keys, read
from ....trainer.lora_files.lora_weights import LoraWeights
from ....trainer.lora_files.strengths import BlockWeights

log = logging.getLogger(__name__)

Patches = dict[Any, Any]  # the host's: parameter name (or name and slice) -> adapter or difference
OUR_OWN = ("lora_magnitude_vector", "oft_R.weight", "oft_blocks")
NO_BLOCK_WEIGHTS = BlockWeights(())


@dataclass(frozen=True)
class Applied:
    """What came of a LoRA."""

    model: Any
    clip: Any | None
    layers: int  # that fitted
    unmatched: tuple[str, ...]  # layers that fitted nothing
    without_effect: bool = False  # every update is zero

    def sentence(self) -> str:
        """For the node's text."""
        zero = (
            "; the update of every layer is zero, so the LoRA changes nothing" if self.without_effect else ""
        )
        if not self.unmatched:
            return f"{self.layers} layers{zero}"
        more = ", ..." if len(self.unmatched) > 3 else ""
        names = ", ".join(self.unmatched[:3])
        return f"{self.layers} layers{zero}; {len(self.unmatched)} fit nothing: {names}{more}"


def read_lora(path: Path) -> LoraWeights:
    """A LoRA file of any format, in our keys, with its metadata.

    Raises:
        KilnError: see trainer.lora_files.read.
    """
    return read.read_lora(path)


def in_our_keys(lora: Mapping[str, Tensor]) -> LoraWeights:
    """A LoRA as another node made it (the host's trainer writes lora_up and lora_down) in our keys."""
    return LoraWeights(read.to_our_keys(lora), getattr(lora, "metadata", {}))


def apply_lora(
    model: Any, clip: Any | None, lora: Mapping[str, Tensor], strength: float
) -> tuple[Any, Any | None]:
    """A clone of model (and clip) with the LoRA on at `strength`; the same objects at strength 0.

    Raises:
        KilnError: see put_on.
    """
    done = put_on(model, clip, lora, strength, strength)
    return done.model, done.clip


def put_on(
    model: Any,
    clip: Any | None,
    lora: Mapping[str, Tensor],
    strength: float,
    strength_clip: float,
    blocks: BlockWeights = NO_BLOCK_WEIGHTS,
    schedule: list[tuple[float, float]] | None = None,
) -> Applied:
    """A clone of model (and clip) with the LoRA on; the same objects where the strength is 0.

    Args:
        blocks: factors per layer.
        schedule: (share of the sampling, factor from there on), for the model; none or empty: always the strength.

    Raises:
        KilnError: no layer of the LoRA belongs to the model or the text encoder, it is for another size of model, or a
            strength is no number.
    """
    if not (math.isfinite(strength) and math.isfinite(strength_clip)):
        raise KilnError(
            f"The strength is {strength:g}, {strength_clip:g} on the text encoder; give a number."
        )
    if strength == 0 and (strength_clip == 0 or clip is None):
        return Applied(model, clip, 0, ())
    layers = formulas.group_by_layer(lora)
    for_model, left = match_layers(lora, layers, comfy.lora.model_lora_keys_unet(model.model, {}), model)
    for_clip: dict[str, Patches] = {}
    if clip is not None and left:
        for_clip, left = match_layers(
            {k: t for k, t in lora.items() if _layer(k) in left},
            left,
            comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}),
        )
    if not for_model and not for_clip:
        raise KilnError(_fits_neither(lora, model))
    blocks.check(_own_names(for_model))
    left |= {key: {} for key in formulas.unknown_keys(lora)}
    if left:
        log.warning("%d layers of the LoRA fit nothing and are left out: %s", len(left), ", ".join(left))
    new_model = model
    if strength and for_model:
        new_model = model.clone()
        put = _schedule if schedule else _patch
        put(new_model, _by_factor(for_model, blocks), strength, schedule)
    new_clip = clip
    if clip is not None and strength_clip and for_clip:
        new_clip = clip.clone()
        for patches in for_clip.values():
            new_clip.add_patches(patches, strength_clip)
    zero = formulas.changes_nothing(layers)
    if zero:
        log.warning("The update of every layer of the LoRA is zero: it changes nothing.")
    return Applied(new_model, new_clip, len(for_model) + len(for_clip), tuple(left), zero)


def _layer(key: str) -> str | None:
    found = keys.split_key(key)
    return None if found is None else found[0]


def match_layers(
    lora: Mapping[str, Tensor],
    layers: Mapping[str, formulas.LayerTensors],
    key_map: dict[str, Any],
    model: Any | None = None,
) -> tuple[dict[str, Patches], dict[str, formulas.LayerTensors]]:
    """Patches by layer, and the layers that fit nothing. With a model, raises KilnError where a layer has another
    shape in it.

    Host-made patches wherever the host knows the adapter, so that the result is the host's own to the last bit.
    """
    translated = comfy.lora_convert.convert_lora(
        dict(lora)
    )  # the host's own special cases (BFL control, USO)
    special = set(translated) - set(lora)
    found: dict[str, Patches] = {}
    if special:
        loaded = comfy.lora.load_lora(translated, key_map)
        return ({"the host's": loaded}, {}) if loaded else ({}, dict(layers))
    names = None
    left: dict[str, formulas.LayerTensors] = {}
    weights = dict(model.model.named_parameters()) if model is not None else {}
    for layer, parts in layers.items():
        known = layer
        if layer not in key_map and model is not None:
            names = names or keys.lookup(_layer_names(key_map))
            known = keys.own_layers([layer], names)[layer]
        if known not in key_map and f"{known}.weight" in key_map:
            known = f"{known}.weight"
        if known not in key_map:
            left[layer] = parts
            continue
        target = key_map[known]
        _check_shape(layer, parts, weights.get(target) if isinstance(target, str) else None, lora, model)
        found[layer] = _patches(known, parts, target)
    return found, left


def _layer_names(key_map: dict[str, Any]) -> list[str]:
    return [k.removeprefix(keys.PREFIX) for k in key_map if k.startswith(keys.PREFIX)]


def _patches(known: str, parts: formulas.LayerTensors, target: Any) -> Patches:
    hosts_only = (
        "dora_scale" in parts
        or "rescale" in parts
        or ("oft_blocks" in parts and parts["oft_blocks"].dim() > 3)
    )
    if any(part in parts for part in OUR_OWN) and not hosts_only:
        return {target: OwnAdapter(parts)}
    spelled = {known + keys.KOHYA_ENDINGS.get(part, f".{part}"): t for part, t in parts.items()}
    return comfy.lora.load_lora(spelled, {known: target})


def _check_shape(
    layer: str, parts: formulas.LayerTensors, weight: Any, lora: Mapping[str, Tensor], model: Any
) -> None:
    """The host only logs a LoRA of another size of model, and goes on without it."""
    if (
        "reshape_weight" in parts
        or type(weight) not in (nn.Parameter, Tensor)
        or not weight.is_floating_point()
    ):
        return
    shape = formulas.shape_of(parts)
    if "diff" in parts:
        fits = shape is None or shape[0] * shape[1] == weight.numel()
    else:
        fits = shape in (None, (weight.shape[0], math.prod(weight.shape[1:]))) if weight.dim() else True
    if not fits and shape is not None:
        raise KilnError(
            f"This LoRA is for {made_for(lora)}, and the model is another one ({type(model.model).__name__}): {layer} "
            f"is {shape[0]} x {shape[1]} in the LoRA and {' x '.join(map(str, weight.shape))} in the model. Use "
            f"it with "
            "the model it was trained on."
        )


def made_for(lora: Mapping[str, Tensor]) -> str:
    """The model that a LoRA is for, in words."""
    layers = formulas.group_by_layer(lora)
    widths = {k: p["lora_A.weight"].shape[1] for k, p in layers.items() if "lora_A.weight" in p}
    return keys.model_of(layers, widths)


def _fits_neither(lora: Mapping[str, Tensor], model: Any) -> str:
    example = next(iter(lora), "nothing")
    return (
        f"This LoRA fits neither the model ({type(model.model).__name__}) nor the text encoder: it is for "
        f"{made_for(lora)} and holds layers such as {example!r}. Use it with the kind of model it was trained on."
    )


def _by_factor(patches: Mapping[str, Patches], blocks: BlockWeights) -> dict[float, Patches]:
    """One set of patches per factor; layers of factor 0 are left out."""
    groups: dict[float, Patches] = {}
    for found in patches.values():
        for target, patch in found.items():
            factor = blocks.of(_own_name(target))
            if factor:
                groups.setdefault(factor, {})[target] = patch
    return groups


def _own_names(patches: Mapping[str, Patches]) -> list[str]:
    return [_own_name(target) for found in patches.values() for target in found]


def _own_name(target: Any) -> str:
    """The model's own name of a layer: a file may spell it without dots, which hides the number of its block."""
    name = target if isinstance(target, str) else target[0]
    return str(name).removesuffix(".weight").removesuffix(".bias")


def _patch(model: Any, groups: dict[float, Patches], strength: float, schedule: object) -> None:
    for factor, patches in groups.items():
        alone = {target for target in patches if _passed_over(model, target)}
        model.add_patches({t: patch for t, patch in patches.items() if t not in alone}, strength * factor)
        for name in alone:
            held = model.get_model_object(name)
            patch = [(strength * factor, patches[name], 1.0, None, None)]
            weight = comfy.lora.calculate_weight(patch, held.detach().float().clone(), name)
            model.add_object_patch(name, nn.Parameter(weight.to(held), requires_grad=False))


def _passed_over(model: Any, target: Any) -> bool:
    """Whether the host never patches this parameter: hosts 0.3.75 and 0.33 only look at modules without modules below
    that have parameters, and so leave out Wan's modulation, which a block holds beside its layers."""
    if not isinstance(target, str):
        return False
    owner = model.model.get_submodule(target.rpartition(".")[0])
    return any("." in name for name, _ in owner.named_parameters())


def _schedule(
    model: Any, groups: dict[float, Patches], strength: float, schedule: list[tuple[float, float]] | None
) -> None:
    """Hang the patches on the host's hooks, which follow the sampling.

    The host attaches hooks to conditioning. A LoRA belongs to the model, so a wrapper of the model attaches them to all
    conditioning when sampling begins; whatever sampler node is used need not know.
    """
    ours = comfy.hooks.HookGroup()
    for factor, patches in groups.items():
        hook = comfy.hooks.WeightHook(strength_model=strength * factor, strength_clip=0.0)
        hook.weights, hook.weights_clip, hook.need_weight_init = patches, {}, False
        for index, (start, value) in enumerate(schedule or []):
            # The first holds from the very start; a later one may be passed over when steps are few.
            frame = comfy.hooks.HookKeyframe(
                value, start, guarantee_steps=1 if index == 0 and start == 0 else 0
            )
            hook.hook_keyframe.add(frame)
        ours.add(hook)

    def attach(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        everything, combined = comfy.hooks.HookGroup(), {None: ours}
        for conds in guider.conds.values():
            for cond in conds:  # one group for all that had the same: the host runs those in one batch
                theirs = cond.get("hooks")
                if theirs not in combined:
                    combined[theirs] = ours.clone_and_combine(theirs)
                cond["hooks"] = combined[theirs]
            comfy.sampler_helpers.get_hooks_from_cond(conds, everything)
        options = guider.model_options
        registered = options.get("registered_hooks") or comfy.hooks.HookGroup()
        target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
        guider.model_patcher.register_all_hook_patches(everything, target, options, registered)
        options["registered_hooks"] = registered
        return executor(*args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    model.add_wrapper_with_key(kind, f"lora_kiln_{id(ours)}", attach)


class OwnAdapter(WeightAdapterBase):
    """A kind of adapter by our own formulas (trainer/lora_files/formulas.py): peft's DoRA and OFT, which the host does
    not know, and OFT, to which hosts 0.3.75 and 0.33 apply the strength twice (0.5 acts as 0.25, -1 as 1)."""

    name = "lora_kiln"

    def __init__(self, parts: formulas.LayerTensors) -> None:
        self.parts = parts
        self.weights = list(parts.values())
        self.loaded_keys: set[str] = set()

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        parts = {
            name: comfy.model_management.cast_to_device(t, weight.device, intermediate_dtype)
            for name, t in self.parts.items()
        }
        base = weight.to(intermediate_dtype)
        change = formulas.merged_weight(parts, base, strength) - base
        weight += function(change.to(weight.dtype))
        return weight
