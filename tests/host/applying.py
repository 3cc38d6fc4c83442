"""What the host's loaders, our nodes and the formulas make of one LoRA, for every family and format; prints JSON.

Run by test_applying.py: `python applying.py MODEL.safetensors` in the host's folder. Every figure is the largest
relative error (norm of the difference over the norm of the change) over all changed weights, at several strengths.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

MODEL = Path(sys.argv[1]).resolve()
inprocess.start()

import comfy.sd
import comfy.utils
import folder_paths
import torch
from lora_kiln.nodes.host.models.lora import put_on, read_lora  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.formulas import group_by_layer, merged_weight  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.lora_weights import LoraWeights  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.merge import merge_loras  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.save import save_lora  # type: ignore[import-not-found]
from torch import Tensor

import nodes

OURS = "diffusion_model."
LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.2.ffn.0", "patch_embedding")
STRENGTHS = (1.0, 0.7, -0.5, 0.0)
HOST_KNOWS = ("comfyui", "kohya")


def family(kind: str, shapes: dict[str, torch.Size]) -> LoraWeights:
    """Random tensors of one family for LAYERS, fp32."""
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=g)

    tensors: dict[str, Tensor] = {}
    for layer in LAYERS:
        shape, name = shapes[layer], OURS + layer
        out, width = shape[0], int(torch.tensor(shape[1:]).prod())
        conv = len(shape) > 2
        if kind in ("lora", "lora, no alpha", "dora rows", "dora columns", "dora of peft"):
            tensors[f"{name}.lora_A.weight"] = draw(4, *shape[1:])
            tensors[f"{name}.lora_B.weight"] = draw(out, 4, *[1] * (len(shape) - 2))
            if kind != "lora, no alpha":
                tensors[f"{name}.alpha"] = torch.tensor(2.5)
        if kind == "dora rows":
            tensors[f"{name}.dora_scale"] = draw(out, *[1] * (len(shape) - 1)).abs() + 1
        elif kind == "dora columns" and not conv:
            tensors[f"{name}.dora_scale"] = draw(1, width).abs() + 1
        elif kind == "dora of peft" and not conv:
            tensors[f"{name}.lora_magnitude_vector"] = draw(out).abs() + 1
        elif kind == "loha":
            for part, size in (
                ("w1_a", (out, 3)),
                ("w1_b", (3, width)),
                ("w2_a", (out, 3)),
                ("w2_b", (3, width)),
            ):
                tensors[f"{name}.hada_{part}"] = draw(*size)
            tensors[f"{name}.alpha"] = torch.tensor(1.5)
        elif kind == "lokr" and not conv:
            tensors |= {f"{name}.lokr_w1": draw(4, 4), f"{name}.alpha": torch.tensor(1.5)}
            tensors |= {f"{name}.lokr_w2_a": draw(out // 4, 3), f"{name}.lokr_w2_b": draw(3, width // 4)}
        elif kind == "oft":
            tensors[f"{name}.oft_blocks"] = draw(8, out // 8, out // 8)
        elif kind == "oft of peft" and not conv:
            tensors[f"{name}.oft_R.weight"] = draw(width // 8, 28)
        elif kind == "difference":
            tensors[f"{name}.diff"] = draw(*shape)
    return LoraWeights(tensors)


def weights_of(patcher: Any) -> dict[str, Tensor]:
    """The weights of LAYERS as the host computes them."""
    found = {}
    for layer in LAYERS:
        key = f"{OURS}{layer}.weight"
        weight = comfy.utils.get_attr(patcher.model, key).detach().clone().float()
        patches = patcher.patches.get(key, [])
        found[layer] = comfy.lora.calculate_weight(patches, weight, key)
    return found


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor], base: dict[str, Tensor]) -> float:
    return max(float((ours[k] - theirs[k]).norm() / base[k].norm()) for k in ours)


def main() -> None:
    figures: dict[str, Any] = {"formula": {}, "loader": {}, "formats": {}}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        patcher = comfy.sd.load_diffusion_model(str(MODEL), model_options={"dtype": torch.float32})
        base = weights_of(patcher)
        shapes = {layer: weight.shape for layer, weight in base.items()}
        folder_paths.add_model_folder_path("loras", folder)
        kinds = ("lora", "lora, no alpha", "dora rows", "dora columns", "dora of peft", "loha", "lokr")
        for kind in (*kinds, "oft", "oft of peft", "difference"):
            lora = family(kind, shapes)
            layers = {k.removeprefix(OURS): p for k, p in group_by_layer(lora).items()}
            errors, loader = [], []
            save_lora(
                Path(folder) / "host.safetensors", lora, dtype="keep"
            ) if kind != "oft of peft" else None
            for strength in STRENGTHS:
                done = put_on(patcher, None, lora, strength, strength)
                assert (done.model is patcher) == (strength == 0), "strength 0 costs nothing"
                ours = weights_of(done.model)
                expected = {
                    k: merged_weight(layers[k], w.double(), strength).float() if k in layers else w
                    for k, w in base.items()
                }
                errors.append(worst(ours, expected, base))
                if kind not in ("dora of peft", "oft of peft") and strength in (
                    (1.0,) if kind == "oft" else STRENGTHS[:-1]  # the host applies an OFT's strength twice
                ):
                    (by_host,) = nodes.LoraLoaderModelOnly().load_lora_model_only(
                        patcher, "host.safetensors", strength
                    )
                    loader.append(worst(weights_of(by_host), ours, base))
            figures["formula"][kind] = max(errors)
            if loader:
                figures["loader"][kind] = max(loader)
        lora = family("lora", shapes)
        ours = weights_of(put_on(patcher, None, lora, 0.7, 0.7).model)
        for format in ("comfyui", "kohya", "diffusers", "peft"):
            path = save_lora(Path(folder) / f"{format}.safetensors", lora, format=format, dtype="keep")
            again = weights_of(put_on(patcher, None, read_lora(path), 0.7, 0.7).model)
            figures["formats"][f"{format} by us"] = worst(again, ours, base)
            if format in HOST_KNOWS:
                (by_host,) = nodes.LoraLoaderModelOnly().load_lora_model_only(patcher, path.name, 0.7)
                figures["formats"][f"{format} by the host"] = worst(weights_of(by_host), ours, base)
        second = LoraWeights({k: t * 0.5 if "lora_A" in k else t for k, t in lora.items()})
        row = put_on(put_on(patcher, None, lora, 0.8, 0).model, None, second, 0.5, 0).model
        merged, _ = merge_loras([lora, second], [0.8, 0.5])
        figures["merge"] = worst(
            weights_of(put_on(patcher, None, merged, 1.0, 0).model), weights_of(row), base
        )
        moved = weights_of(put_on(patcher, None, lora, 1.0, 0).model)
        figures["smallest_effect"] = min(float((moved[k] - base[k]).norm() / base[k].norm()) for k in base)
    print(json.dumps(figures))


main()
