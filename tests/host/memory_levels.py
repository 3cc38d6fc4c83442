"""One training step on the tiny Wan at every memory level, as it is, patched by other nodes and in every kind of
quantised weights; prints JSON.

Run by test_memory_levels.py: `python memory_levels.py MODEL.safetensors` in the host's folder. Figures are relative
errors of loss and gradients, against the whole model, or against a plain fp32 model with the dequantised weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

MODEL = Path(sys.argv[1]).resolve()
inprocess.start()

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.source import model_file  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig, MemoryConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.errors import KilnError  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.ledger import size_of  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.placement import Placement  # type: ignore[import-not-found]
from one_step import LATENTS, error, kept_off_the_device, load, take_step
from safetensors.torch import save_file
from torch import Tensor, nn

LEVELS = ("resident", "checkpoint activations", "stream blocks", "stream from file")
QUANTISED = (torch.float8_e4m3fn, 448.0)


def step(model: Any, file: Path | None = None, **memory: Any) -> list[Tensor]:
    """The loss and the gradients of all adapter matrices."""
    denoiser = HostDenoiser(model, tuple(LATENTS.shape))
    adapter_config = AdapterConfig(rank=4, alpha=4.0, dropout=0.0)
    placement = Placement(denoiser, MemoryConfig(**memory), adapter_config, host_weights, file)
    with placement.session():
        adapter = make_adapter(denoiser.module, adapter_config, 0, placement.weights)
        return take_step(denoiser, adapter)


def share_in_ring(model: Any) -> float:
    """Of the bytes of a block, those that are streamed."""
    denoiser = HostDenoiser(model, tuple(LATENTS.shape))
    config = AdapterConfig(rank=4, alpha=4.0, dropout=0.0)
    placement = Placement(denoiser, MemoryConfig(level="stream blocks"), config, host_weights)
    with placement.session():
        whole = sum(map(size_of, denoiser.module.blocks[0].parameters()))
        return sum(w.size for w in placement.ring._blocks[0]) / whole


def patched(model: Any) -> Any:
    """As a LoRA loader leaves it, on layers inside and outside the blocks."""
    changed = model.clone()
    patches = {}
    for key in (
        "blocks.0.self_attn.q.weight",
        "blocks.3.ffn.2.bias",
        "blocks.1.norm3.weight",
        "head.head.weight",
    ):
        name = f"diffusion_model.{key}"
        value = comfy.utils.get_attr(model.model, name)
        patches[name] = (0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2)),)
    assert len(changed.add_patches(patches, 0.5)) == 4
    return changed


def matrices_of(state: dict[str, Tensor]) -> list[str]:
    """All linear layers: host 0.3.75 takes scaled fp8 for the type of every one."""
    return [k.removesuffix(".weight") for k, v in state.items() if k.endswith(".weight") and v.ndim == 2]


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max() / QUANTISED[1]
    return (weight / scale).to(QUANTISED[0]), scale


class Packed(Tensor):
    """A weight in a form of its own, as ComfyUI-GGUF keeps them: only its layer knows how to read it."""


class PackedLinear(comfy.ops.manual_cast.Linear):  # type: ignore[misc, name-defined]
    """The shape of ComfyUI-GGUF's layer: a method of its own gives weight and bias."""

    def cast_bias_weight(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = self.weight.as_subclass(Tensor).to(input.dtype) * self.packed_scale
        return weight, None if self.bias is None else self.bias.to(input)

    def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
        weight, bias = self.cast_bias_weight(input)
        return nn.functional.linear(input, weight, bias)


def pack(model: Any) -> None:
    for layer in model.model.diffusion_model.blocks.modules():
        if isinstance(layer, comfy.ops.disable_weight_init.Linear):
            weight = layer.weight.detach()
            scale = weight.abs().max() / 127
            layer.__class__ = PackedLinear
            layer.packed_scale = scale
            with torch.inference_mode(False):
                layer.weight = nn.Parameter(
                    (weight / scale).round().to(torch.int8).as_subclass(Packed), requires_grad=False
                )


def quantised_files(state: dict[str, Tensor], folder: Path) -> dict[str, tuple[Callable[[], Any], Path]]:
    """name -> how the host loads it, and a plain fp32 file with the values it stands for."""
    matrices = matrices_of(state)
    fp8, scaled, mixed = dict(state), dict(state), dict(state)
    plain = {"fp8": dict(state), "scaled fp8": dict(state), "packed": dict(state)}
    for name in matrices:
        # Host 0.3.75 keeps the biases of scaled fp8 in fp8 too
        bias = state[f"{name}.bias"].to(QUANTISED[0]).float()
        for file in (scaled, mixed, plain["scaled fp8"]):
            file[f"{name}.bias"] = bias.clone()
        weight = state[f"{name}.weight"]
        low, scale = rounded(weight)
        scaled[f"{name}.weight"], scaled[f"{name}.scale_weight"] = low, scale
        mixed[f"{name}.weight"], mixed[f"{name}.weight_scale"] = low, scale
        plain["scaled fp8"][f"{name}.weight"] = low.float() * scale
        if not name.startswith("blocks."):
            continue
        step_size = weight.abs().max() / 127
        plain["packed"][f"{name}.weight"] = (weight / step_size).round() * step_size
    for key, value in state.items():
        fp8[key] = value.to(torch.float8_e4m3fn)
        plain["fp8"][key] = fp8[key].float()
    scaled["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)  # two values: matrices in full precision
    layers = {name: {"format": "float8_e4m3fn"} for name in matrices}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(fp8, folder / "fp8.safetensors")
    save_file(scaled, folder / "scaled.safetensors")
    save_file(mixed, folder / "mixed.safetensors", metadata)
    for name, values in plain.items():
        save_file({k: v.clone() for k, v in values.items()}, folder / f"plain {name}.safetensors")

    def packed() -> Any:
        model = load(MODEL)
        pack(model)
        return model

    return {
        "fp8": (lambda: load(folder / "fp8.safetensors"), folder / "plain fp8.safetensors"),
        "scaled fp8": (lambda: load(folder / "scaled.safetensors"), folder / "plain scaled fp8.safetensors"),
        "mixed precision": (
            lambda: load(folder / "mixed.safetensors"),
            folder / "plain scaled fp8.safetensors",
        ),
        "packed": (packed, folder / "plain packed.safetensors"),
    }


def main() -> None:
    figures: dict[str, Any] = {}
    whole = step(load(MODEL), level="resident")
    for level in LEVELS[1:]:
        for offload in (False, True):
            found = step(load(MODEL), MODEL, level=level, offload_block_inputs=offload)
            figures[f"{level}{' offload' if offload else ''}"] = error(found, whole)
    for level in LEVELS[1:3]:
        figures[f"{level}, parts apart"] = error(step(load(MODEL), level=level, recompute_parts=True), whole)
    for level in LEVELS[:3]:
        for precision in ("fp8", "nf4"):
            rounded = step(load(MODEL), level=level, base_precision=precision)
            figures[f"{level} on {precision}"] = error(rounded, whole)

    # With another node's patches, loaded whole, and kept off the device
    expected = step(patched(load(MODEL)), level="resident")
    figures["effect of patches"] = error(expected, whole)
    for level in LEVELS[1:3]:
        figures[f"patched, {level}"] = error(step(patched(load(MODEL)), level=level), expected)
    with kept_off_the_device():
        for level in LEVELS[:3]:
            figures[f"kept off, {level}"] = error(step(patched(load(MODEL)), level=level), expected)
        found = step(patched(load(MODEL)), level="stream blocks", base_precision="fp8")
    expected = step(patched(load(MODEL)), level="resident", base_precision="fp8")
    figures["kept off, fp8"] = error(found, expected)
    source = {"loader": "UNETLoader", "file": "x.safetensors"}
    figures["file of a patched model"] = str(model_file(patched(load(MODEL)), source))
    try:
        step(patched(load(MODEL)), MODEL, level="stream from file")
    except KilnError as refused:
        figures["refused"] = str(refused)

    with tempfile.TemporaryDirectory() as folder:
        state = {k: v.float().clone() for k, v in comfy.utils.load_torch_file(str(MODEL)).items()}
        for name, (make, plain) in quantised_files(state, Path(folder)).items():
            figures[f"{name}: share in the ring"] = share_in_ring(make())
            expected = step(load(plain), level="resident")
            figures[f"{name}: effect"] = error(expected, whole)
            for level in LEVELS[:3]:
                figures[f"{name}, {level}"] = error(step(make(), level=level), expected)
    print(json.dumps(figures))


main()
