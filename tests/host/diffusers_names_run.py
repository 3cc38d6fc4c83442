"""Saves a LoRA of each family in every format and compares what diffusers and we make of it; prints JSON.

Run by test_diffusers_names.py in the host's folder. The expected weights come from diffusers' own converters of whole
models, which know nothing of LoRAs: the host's weights with the update added, converted, against the host's weights
converted, with the saved file loaded by diffusers and fused.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

NAMES = sys.argv[1:]
inprocess.start()

import diffusers
import torch
from diffusers.loaders import single_file_utils as convert
from families import CASES, POOLED, TEXT
from lora_kiln.trainer.adapter.targets import choose_targets  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files import keys  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.formulas import group_by_layer, merged_weight  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.lora_weights import LoraWeights  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.read import read_lora  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.save import save_lora  # type: ignore[import-not-found]
from safetensors.torch import load_file
from tiny_models import make_model
from torch import Tensor

State = dict[str, Tensor]
HEADS = {"num_attention_heads": 2, "attention_head_dim": 32}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family that has a public convention."""

    case: str
    pipeline: str
    transformer: Callable[[], Any]
    convert: Callable[[State], State]
    dims: dict[str, Any] = field(default_factory=dict)


def _hunyuan_original(state: State) -> State:
    """The names of the published files, which the host renames when it loads them."""
    renames = (
        *((f"{s}_attn.{x}", f"{s}_attn_{x}") for s in ("img", "txt") for x in ("qkv", "proj")),
        *(
            (f"{s}_mlp.{i}.", f"{s}_mlp.{x}.")
            for s in ("img", "txt")
            for i, x in (("0", "fc1"), ("2", "fc2"))
        ),
        *((f"{s}_mod.lin.", f"{s}_mod.linear.") for s in ("img", "txt")),
        *((f"self_attn.{x}", f"self_attn_{x}") for x in ("qkv", "proj")),
        ("modulation.lin.", "modulation.linear."),
        ("_attn.norm.query_norm.", "_attn_q_norm."),
        ("_attn.norm.key_norm.", "_attn_k_norm."),
        (".norm.query_norm.", ".q_norm."),
        (".norm.key_norm.", ".k_norm."),
    )
    for ours, theirs in renames:
        state = {k.replace(ours, theirs): v for k, v in state.items()}
    return state


def _narrow(converter: Any) -> Callable[[State], State]:
    """diffusers' converter for networks 64 wide: their real width is written into it."""
    code = converter.__code__
    consts = tuple(64 if const == 3072 else _narrow_code(const) for const in code.co_consts)
    return types.FunctionType(code.replace(co_consts=consts), converter.__globals__)


def _narrow_code(const: Any) -> Any:
    """Functions inside it too."""
    if not isinstance(const, types.CodeType):
        return const
    return const.replace(co_consts=tuple(64 if c == 3072 else _narrow_code(c) for c in const.co_consts))


def _unet(**options: Any) -> Callable[[], Any]:
    return lambda: diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        layers_per_block=2,
        cross_attention_dim=TEXT,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        **options,
    )


def _convert_unet(**options: Any) -> Callable[[State], State]:
    def run(state: State) -> State:
        config = dict(_unet(**options)().config)
        return convert.convert_ldm_unet_checkpoint(
            {f"model.diffusion_model.{k}": v for k, v in state.items()}, config
        )

    return run


_SDXL = {
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": POOLED + 6 * 256,
}
FAMILIES = {
    "SD 1.5": Family(
        case="SD 1.5",
        pipeline="StableDiffusionPipeline",
        transformer=_unet(),
        convert=_convert_unet(),
    ),
    "SDXL": Family(
        case="SDXL",
        pipeline="StableDiffusionXLPipeline",
        transformer=_unet(**_SDXL),
        convert=_convert_unet(**_SDXL),
    ),
    "SD 3.5": Family(
        case="SD 3.5",
        pipeline="StableDiffusion3Pipeline",
        transformer=lambda: diffusers.SD3Transformer2DModel(
            sample_size=16,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=64,
            joint_attention_dim=TEXT,
            caption_projection_dim=128,
            pooled_projection_dim=POOLED,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        convert=convert.convert_sd3_transformer_checkpoint_to_diffusers,
    ),
    "Flux dev": Family(
        case="Flux dev",
        pipeline="FluxPipeline",
        transformer=lambda: diffusers.FluxTransformer2DModel(
            **HEADS,
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=TEXT,
            pooled_projection_dim=POOLED,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        ),
        convert=_narrow(convert.convert_flux_transformer_checkpoint_to_diffusers),
        dims={"mlp_ratio": 4.0},
    ),
    "Flux 2": Family(
        case="Flux 2",
        pipeline="Flux2Pipeline",
        transformer=lambda: diffusers.Flux2Transformer2DModel(
            **HEADS,
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=TEXT,
            axes_dims_rope=(8, 8, 8, 8),
        ),
        convert=convert.convert_flux2_transformer_checkpoint_to_diffusers,
    ),
    "Qwen-Image": Family(
        case="Qwen-Image",
        pipeline="QwenImagePipeline",
        transformer=lambda: diffusers.QwenImageTransformer2DModel(
            **HEADS, num_layers=2, joint_attention_dim=TEXT, axes_dims_rope=(8, 12, 12)
        ),
        convert=dict,  # the published files have the names of diffusers
    ),
    "Z-Image": Family(
        case="Z-Image",
        pipeline="ZImagePipeline",
        transformer=lambda: diffusers.ZImageTransformer2DModel(
            dim=384,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=TEXT,
            axes_dims=[48, 72, 72],
            axes_lens=[300, 64, 64],
        ),
        convert=convert.convert_z_image_transformer_checkpoint_to_diffusers,
        dims={"dim": 384, "axes_dims": [48, 72, 72]},
    ),
    "HunyuanVideo": Family(
        case="HunyuanVideo",
        pipeline="HunyuanVideoPipeline",
        transformer=lambda: diffusers.HunyuanVideoTransformer3DModel(
            **HEADS,
            num_layers=2,
            num_single_layers=2,
            text_embed_dim=TEXT,
            pooled_projection_dim=POOLED,
            rope_axes_dim=(8, 12, 12),
        ),
        convert=lambda state: _narrow(convert.convert_hunyuan_video_transformer_to_diffusers)(
            _hunyuan_original(state)
        ),
        dims={"mlp_ratio": 4.0},
    ),
    "LTX-Video": Family(
        case="LTX-Video",
        pipeline="LTXPipeline",
        transformer=lambda: diffusers.LTXVideoTransformer3DModel(
            **HEADS, num_layers=2, cross_attention_dim=64, caption_channels=TEXT
        ),
        convert=convert.convert_ltx_transformer_checkpoint_to_diffusers,
    ),
}


def _published(state: State) -> State:
    """Host 0.33 calls the scale of a norm its weight."""
    names = {name: name.replace("_norm.weight", "_norm.scale") for name in state if ".norm." in name}
    return {names.get(name, name): tensor for name, tensor in state.items()}


def random_lora(state: State, layers: list[str]) -> Any:
    draws = torch.Generator().manual_seed(4)
    lora = LoraWeights({})
    for i, layer in enumerate(layers):
        weight = state[f"{layer}.weight"]
        rank = 4 if i % 3 else 2
        lora[f"{keys.PREFIX}{layer}.lora_A.weight"] = torch.randn(rank, weight[0].numel(), generator=draws)
        lora[f"{keys.PREFIX}{layer}.lora_B.weight"] = torch.randn(len(weight), rank, generator=draws)
        lora[f"{keys.PREFIX}{layer}.alpha"] = torch.tensor(3.0)
    return lora


def merged(state: State, lora: Any) -> State:
    found = dict(state)
    for layer, parts in group_by_layer(lora).items():
        name = f"{layer.removeprefix(keys.PREFIX)}.weight"
        found[name] = merged_weight(parts, state[name], 1.0)
    return found


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


class warnings_of_diffusers(logging.Handler):
    """What diffusers says of keys that it does not use."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("diffusers").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def row(family: Family, folder: Path) -> dict[str, Any]:
    case = CASES[family.case]
    network = make_model(replace(case, dims={**case.dims, **family.dims})).model.diffusion_model
    state = {k: v.clone().float() for k, v in network.state_dict().items()}
    layers = choose_targets(network, "")
    lora = random_lora(state, layers)
    base, expected = (family.convert(_published(each)) for each in (state, merged(state, lora)))
    changed = {k for k in expected if not torch.equal(expected[k], base[k])}

    path = save_lora(folder / "d.safetensors", lora, format="diffusers", dtype="keep")
    kohya = save_lora(folder / "k.safetensors", lora, format="kohya", dtype="keep")
    model = family.transformer()
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    model.load_state_dict({k: v for k, v in base.items() if shapes.get(k) == v.shape}, strict=False)
    said = warnings_of_diffusers().said
    pipeline = getattr(diffusers, family.pipeline)
    loaded = pipeline.lora_state_dict(str(path), return_lora_metadata=True)
    into = "unet" if hasattr(pipeline, "load_lora_into_unet") else "transformer"
    load = getattr(pipeline, f"load_lora_into_{into}")
    options = {"network_alphas": None} if "network_alphas" in inspect.signature(load).parameters else {}
    load(loaded[0], **{into: model}, metadata=loaded[-1], **options)
    model.fuse_lora()
    model.unload_lora()
    theirs = model.state_dict()
    with_model = keys.lookup(layers)
    ours = merged(state, lora)
    return {
        "layers": len(layers),
        "changed": len(changed),
        "missing": sorted(changed - theirs.keys())[:3],
        "said": said,
        "diffusers": max(error(theirs[k], expected[k]) for k in changed if k in theirs),
        "read back": max(
            error(merged(state, read_lora(each, with_model))[f"{name}.weight"], ours[f"{name}.weight"])
            for name in layers
            for each in (path, kohya)
        ),
        "kohya": sorted({k.split(".")[0] for k in load_file(kohya)}),
        "own": layers,
    }


def main() -> None:
    rows = {}
    for name, family in FAMILIES.items():
        if NAMES and name not in NAMES:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row(family, Path(folder))
    print(json.dumps(rows))


main()
