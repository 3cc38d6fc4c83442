"""What is known of each model family, as data: the one place to describe a new one.

Everything a family leaves out has a default that holds for networks nobody has described: such a network trains, its
LoRA files keep the network's own layer names, and no layers are computed together. Read by:

    adapter/targets.py     which layers get an adapter when the user names none; names of target modules that are taken
    adapter/fused.py       which layers read the same tensor
    lora_files/keys.py     layer names in LoRA files of other tools; what a LoRA file is for
    memory/activations.py  which layers see fewer tokens or keep more than others
    noise_defaults.py      how noise levels are drawn, and which sizes the model is told, where the user says auto
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

# Layers of any network that get no adapter when the user names no targets
NEVER_DEFAULT_TARGETS = re.compile(
    "|".join(
        (
            r"norm|mod(ulation)?\b|adaln|emb|time|router",
            r"mod(C|X|CX)\.",  # AuraFlow's modulation
            r"distilled_guidance",  # Chroma's, which makes the modulation of all blocks
            r"refiner",  # text and noise refiners of HunyuanVideo, Lumina 2, Z-Image, Omnigen2
            # What makes text ready for the blocks: Anima, HiDream, Kandinsky 5
            r"llm_adapter|caption_projection|text_transformer_blocks",
            r"lyric_encoder|projectors|audio_injector",  # ACE-Step, Wan S2V
            r"(before|after)_proj\b",  # between VACE's blocks and the others
            r"^input_blocks\.0\.",  # a UNet's first convolution
        )
    ),
    re.IGNORECASE,
)

# For the memory plan: layers of a block that see the caption alone (Flux, Qwen-Image, SD3, HunyuanVideo)
READS_CAPTION = re.compile(r"(^|[._])(txt_(attn|mlp)|add_[qkv]_proj|to_add_out|context_block)([._]|$)")
# and those that make q, k and v as one (the same, Z-Image; linear1 makes the MLP's middle too)
FUSED_QKV = re.compile(r"([._]qkv|single_blocks\.\d+\.linear1)$")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """One list of blocks in the network's own words and in diffusers'."""

    own: str
    """"double_blocks.#": # stands for the block's number."""

    diffusers: str
    """"transformer_blocks.#": the same number."""

    layers: Mapping[str, str | tuple[str, ...]] | None = None
    """Layer inside a block -> diffusers' name of it. Several names: the rows of that layer are those of several layers
    in diffusers, each as many as the layer has inputs and the last the rest. None: the same names, which are read as
    this family's only where the model is known."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family. Layer names are the network's own, relative to its root: "blocks.0.self_attn.q"."""

    name: str
    """As people call it; shown to the user."""

    layers: re.Pattern[str]
    """Searched in the layer names of a network or a LoRA file, in any tool's spelling: found in one, it is this
    family's. Families are tried in the order of FAMILIES."""

    sizes: Mapping[int, str] = field(default_factory=dict)
    """Input width of the attention's q -> name of the model size."""

    target_aliases: Mapping[str, str] = field(default_factory=dict)
    """Name of a target module as diffusers says it -> as the network does."""

    shared_inputs: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """Last part of an attention module's name -> groups of its linear layers that are called one after the other with
    the same tensor."""

    blocks: tuple[Blocks, ...] = ()
    """Its lists of blocks, with their names in diffusers; none where diffusers has no such model."""

    diffusers_outside: Mapping[str, str] = field(default_factory=dict)
    """Layer outside the blocks -> diffusers' name of it."""

    diffusers_prefix: str = "transformer."
    """Before every layer in diffusers' LoRA files."""

    part_widths: Mapping[str, int] = field(default_factory=dict)
    """Layer inside a diffusers block that is a part of one of the network's -> its outputs by its inputs, where that is
    not 1."""

    kohya_in_block: Mapping[str, str] = field(default_factory=dict)
    """Layer inside a block -> what sd-scripts and musubi-tuner call it, where that is not its own name."""

    kohya_like_diffusers: bool = False
    """Whether sd-scripts and musubi-tuner use diffusers' names for it."""

    ratios: Mapping[str, float] = field(default_factory=dict)
    """Ending of a layer's name -> output by input width. Families of the same layer names are told apart by it: one
    that has ratios is meant only where one of these layers has it."""


_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}

_WAN_LAYERS = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm2": "norm3",
    "norm3": "norm2",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
    "modulation": "scale_shift_table",
}

WAN = Family(
    name="Wan",
    layers=re.compile(
        r"(^|[^a-z_]|vace_)blocks[._]\d+[._]((self|cross)_attn[._][qkvo](?![a-z]|_[a-hj-z])|ffn[._]|attn[12][._](to|add)_)"
    ),
    sizes={1536: "Wan 1.3B", 3072: "Wan 2.2 5B", 5120: "Wan 14B"},
    target_aliases={
        **{theirs: ours for ours, theirs in _ATTENTION.items()},
        "ff.net.0.proj": "ffn.0",
        "ffn.net.0.proj": "ffn.0",
        "ff.net.2": "ffn.2",
        "ffn.net.2": "ffn.2",
    },
    shared_inputs={
        "self_attn": (("q", "k", "v"),),
        "cross_attn": (("k", "v"), ("k_img", "v_img")),
    },
    blocks=tuple(
        Blocks(own=f"{name}.#", diffusers=f"{name}.#", layers=_WAN_LAYERS)
        for name in ("blocks", "vace_blocks")
    ),
    diffusers_outside={
        "patch_embedding": "patch_embedding",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
        "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
        "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
        "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
        "head.head": "proj_out",
        "head.modulation": "scale_shift_table",
    },
)

_QKV, _ADDED_QKV = (
    ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
)
_FLUX_DOUBLE: dict[str, str | tuple[str, ...]] = {
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED_QKV,
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
}
_FLUX_LAYERS = re.compile(r"double_blocks|single_blocks|single_transformer_blocks")
_FLUX_BLOCKS = (
    Blocks(
        own="double_blocks.#",
        diffusers="transformer_blocks.#",
        layers=_FLUX_DOUBLE
        | {
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
        },
    ),
    Blocks(
        own="single_blocks.#",
        diffusers="single_transformer_blocks.#",
        layers={"linear1": (*_QKV, "proj_mlp"), "linear2": "proj_out", "modulation.lin": "norm.linear"},
    ),
)

FLUX_2 = Family(
    name="Flux 2",
    layers=_FLUX_LAYERS,
    # Its MLP has a gate: twice the width goes in, and the MLP is 3 times as wide as the model
    ratios={
        "linear1": 9,
        "linear2": 1 / 4,
        "img_mlp.0": 6,
        "txt_mlp.0": 6,
        "img_mlp.2": 1 / 3,
        "txt_mlp.2": 1 / 3,
    },
    blocks=(
        Blocks(
            own="double_blocks.#",
            diffusers="transformer_blocks.#",
            layers=_FLUX_DOUBLE
            | {
                "img_mlp.0": "ff.linear_in",
                "img_mlp.2": "ff.linear_out",
                "txt_mlp.0": "ff_context.linear_in",
                "txt_mlp.2": "ff_context.linear_out",
            },
        ),
        Blocks(
            own="single_blocks.#",
            diffusers="single_transformer_blocks.#",
            layers={"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"},
        ),
    ),
)

HUNYUAN_VIDEO = Family(
    name="HunyuanVideo",
    # Flux has 19 blocks of one kind and 38 of the other, HunyuanVideo 20 and 40, HunyuanVideo 1.5 has 54 of one
    layers=re.compile(
        r"double_blocks[._](19|[2-5]\d)(?!\d)|single_blocks[._]3[89](?!\d)|individual_token_refiner|(img|txt)_mlp[._]fc"
    ),
    blocks=_FLUX_BLOCKS,
    part_widths={"proj_mlp": 4},
    kohya_in_block={
        f"{stream}_mlp.{number}": f"{stream}_mlp.{name}"
        for stream in ("img", "txt")
        for number, name in (("0", "fc1"), ("2", "fc2"))
    },
)

FLUX = Family(
    name="Flux or HunyuanVideo", layers=_FLUX_LAYERS, blocks=_FLUX_BLOCKS, part_widths={"proj_mlp": 4}
)

QWEN_IMAGE = Family(
    name="Qwen-Image",
    layers=re.compile(r"transformer_blocks[._]\d+[._](img_mlp|txt_mlp|attn[._]add_q_proj)"),
    blocks=(Blocks(own="transformer_blocks.#", diffusers="transformer_blocks.#"),),
)

Z_IMAGE = Family(
    name="Z-Image",
    layers=re.compile(r"(layers|_refiner)[._]\d+[._](attention|feed_forward)[._]"),
    blocks=tuple(
        Blocks(
            own=f"{name}.#",
            diffusers=f"{name}.#",
            layers={
                "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
                "attention.out": "attention.to_out.0",
                **{f"feed_forward.{w}": f"feed_forward.{w}" for w in ("w1", "w2", "w3")},
                "adaLN_modulation.0": "adaLN_modulation.0",
            },
        )
        for name in ("layers", "context_refiner", "noise_refiner")
    ),
    kohya_like_diffusers=True,
    ratios={"attention.qkv": 3},  # Lumina 2, of the same names, has fewer heads for k and v
)


def _unet_blocks() -> Iterator[Blocks]:
    """Stable Diffusion's UNets have two ResNets a level going down and three going up; attention keeps its names."""
    resnet = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    in_block = [
        f"{attn}.{name}" for attn in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    names = [
        f"transformer_blocks.{n}.{x}" for n in range(10) for x in (*in_block, "ff.net.0.proj", "ff.net.2")
    ]
    attention = {name: name for name in ("proj_in", "proj_out", *names)}
    for level in range(4):
        for i in range(2):
            own, theirs = f"input_blocks.{3 * level + i + 1}", f"down_blocks.{level}"
            yield Blocks(own=f"{own}.0", diffusers=f"{theirs}.resnets.{i}", layers=resnet)
            yield Blocks(own=f"{own}.1", diffusers=f"{theirs}.attentions.{i}", layers=attention)
        own = f"input_blocks.{3 * level + 3}.0"
        yield Blocks(own=own, diffusers=f"down_blocks.{level}.downsamplers.0", layers={"op": "conv"})
        for i in range(3):
            own, theirs = f"output_blocks.{3 * level + i}", f"up_blocks.{level}"
            yield Blocks(own=f"{own}.0", diffusers=f"{theirs}.resnets.{i}", layers=resnet)
            yield Blocks(own=f"{own}.1", diffusers=f"{theirs}.attentions.{i}", layers=attention)
        for place in (1, 2):  # behind the attention, where the level has one
            own = f"output_blocks.{3 * level + 2}.{place}"
            yield Blocks(own=own, diffusers=f"up_blocks.{level}.upsamplers.0", layers={"conv": "conv"})
    for place, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        layers = attention if name.startswith("attentions") else resnet
        yield Blocks(own=f"middle_block.{place}", diffusers=f"mid_block.{name}", layers=layers)


_UNET_SHARED = {"attn1": (("to_q", "to_k", "to_v"),), "attn2": (("to_k", "to_v"),)}
_UNET_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

STABLE_DIFFUSION_XL = Family(
    name="SDXL",
    # The only one of these with several transformer blocks in a row
    layers=re.compile(r"(down|up|input|output|mid|middle)_blocks?[._].*transformer_blocks[._][1-9]"),
    shared_inputs=_UNET_SHARED,
    blocks=tuple(_unet_blocks()),
    diffusers_outside=_UNET_OUTSIDE,
    diffusers_prefix="unet.",
)

STABLE_DIFFUSION = Family(
    name="Stable Diffusion (UNet)",
    layers=re.compile(r"(down|up|input|output)_blocks|mid(dle)?_block"),
    shared_inputs=_UNET_SHARED,
    blocks=tuple(_unet_blocks()),
    diffusers_outside=_UNET_OUTSIDE,
    diffusers_prefix="unet.",
    kohya_like_diffusers=True,
)

STABLE_DIFFUSION_3 = Family(
    name="Stable Diffusion 3",
    layers=re.compile(r"joint_blocks"),
    blocks=(
        Blocks(
            own="joint_blocks.#",
            diffusers="transformer_blocks.#",
            layers={
                "x_block.attn.qkv": _QKV,
                "x_block.attn2.qkv": tuple(name.replace("attn.", "attn2.") for name in _QKV),
                "context_block.attn.qkv": _ADDED_QKV,
                "x_block.attn.proj": "attn.to_out.0",
                "x_block.attn2.proj": "attn2.to_out.0",
                "context_block.attn.proj": "attn.to_add_out",
                "x_block.mlp.fc1": "ff.net.0.proj",
                "x_block.mlp.fc2": "ff.net.2",
                "context_block.mlp.fc1": "ff_context.net.0.proj",
                "context_block.mlp.fc2": "ff_context.net.2",
            },
        ),
    ),
)

LTX_VIDEO = Family(
    name="LTX-Video",
    layers=re.compile(
        r"transformer_blocks[._]\d+[._](attn1|ff[._]net)[._]"
    ),  # in UNets too, which come first
    blocks=(Blocks(own="transformer_blocks.#", diffusers="transformer_blocks.#"),),
)

FAMILIES = (
    *(WAN, FLUX_2, HUNYUAN_VIDEO, FLUX, QWEN_IMAGE, Z_IMAGE),
    *(STABLE_DIFFUSION_XL, STABLE_DIFFUSION, STABLE_DIFFUSION_3, LTX_VIDEO),
)


def family_of_layers(
    layers: Iterable[str], shapes: Mapping[str, tuple[int, int] | None] | None = None
) -> Family | None:
    """The family of a network or a LoRA file; None when none is recognised.

    Args:
        layers: names of its layers.
        shapes: (out, in) by name, where known: families that are told apart by it are left out without.
    """
    names = list(layers)
    for family in FAMILIES:
        found = any(family.layers.search(name) for name in names)
        if found and (not family.ratios or _has_ratios(family, shapes or {})):
            return family
    return None


def _has_ratios(family: Family, shapes: Mapping[str, tuple[int, int] | None]) -> bool:
    return any(
        shape is not None and abs(shape[0] / shape[1] / ratio - 1) < 0.01
        for name, shape in shapes.items()
        for ending, ratio in family.ratios.items()
        if name.endswith((f".{ending}", f"_{ending.replace('.', '_')}"))
    )


def families_like(layers: Iterable[str]) -> list[Family]:
    """All families whose layers may be these, in the order of FAMILIES."""
    names = list(layers)
    return [f for f in FAMILIES if any(f.layers.search(name) for name in names)]


# What auto means, by the host's class (comfy.supported_models, comfy.model_base): its derived classes are meant too

ShiftBySize = str
""" "patch, n1, mu1, n2, mu2": latents of n tokens, patch x patch latent pixels each, get the shift exp(mu) with mu on
the straight line through (n1, mu1) and (n2, mu2). Text, so that it looks the same in every record."""

FLUX_SHIFT: ShiftBySize = "2, 256, 0.5, 4096, 1.15"


@dataclass(frozen=True, kw_only=True)
class NoiseDefaults:
    """How one family draws its noise levels."""

    sampling: str = "logit_normal"
    shift: float = 3.0
    shift_by_size: ShiftBySize = ""  # instead of shift


NOISE_DEFAULTS: dict[str, NoiseDefaults] = {
    # Black Forest Labs, flux/sampling.py: get_lin_function and time_shift; sd-scripts calls it flux_shift
    "Flux": NoiseDefaults(shift_by_size=FLUX_SHIFT),
    # Its scheduler_config.json: base_shift 0.5, max_shift 1.15, 256 to 4096 tokens; one latent pixel is a token
    "Flux2": NoiseDefaults(shift_by_size="1, 256, 0.5, 4096, 1.15"),
    # sd-scripts' documentation: timestep_sampling sigmoid, which is logit_normal without a shift
    "Chroma": NoiseDefaults(shift=1.0),
    # The scheduler_config.json of Qwen/Qwen-Image: base_shift 0.5, max_shift 0.9, max_image_seq_len 8192
    "QwenImage": NoiseDefaults(shift_by_size="2, 256, 0.5, 8192, 0.9"),
    # sd-scripts, nextdit_shift: the line of Flux; Z-Image, of the same class, is sampled with 3
    "ZImage": NoiseDefaults(),
    "Lumina2": NoiseDefaults(shift_by_size=FLUX_SHIFT),
    # LTX-Video-Trainer, timestep_samplers.py: sigmoid(n + mu) with mu by tokens, which is a shift of exp(mu)
    "LTXV": NoiseDefaults(shift_by_size="1, 1024, 0.95, 4096, 2.05"),
    # Esser et al. 2024 (arXiv 2403.03206), section 5.3.2: rf/lognorm(0, 1), shift 3 at 1024 x 1024
    "SD3": NoiseDefaults(),
    "WAN21": NoiseDefaults(),
    # The scheduler_config.json of HunyuanVideo in diffusers' format: shift 7
    "HunyuanVideo": NoiseDefaults(shift=7.0),
    # The host's own sampling shift
    "AuraFlow": NoiseDefaults(shift=1.73),
}

DIFFUSION = NoiseDefaults(sampling="uniform", shift=1.0)
"""Models that predict noise, v or x0: every timestep alike (Ho et al. 2020, arXiv 2006.11239, algorithm 1)."""

SIZE_CONDITIONED = frozenset({"SDXL", "SDXLRefiner", "HunyuanDiT"})
"""Families that are told sizes."""

# What other programs call a model, by the host's class: modelspec.architecture without "/lora", ss_base_model_version.
# sd-scripts' library/sai_model_spec.py and model_util.py, musubi-tuner's sai_model_spec.py and architectures.py
MODEL_SPECS: dict[str, tuple[str, str]] = {
    "SD15": ("stable-diffusion-v1", "sd_v1"),
    "SD20": ("stable-diffusion-v2-512", "sd_v2"),
    "SDXL": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "SDXLRefiner": ("stable-diffusion-xl-v1-refiner", "sdxl_refiner_v1-0"),
    "SD3": ("stable-diffusion-3", "sd3"),
    "Chroma": ("chroma", "chroma"),
    "FluxSchnell": ("flux-1-schnell", "flux1"),
    "Flux2": ("Flux.2", "flux_2"),
    "Flux": ("flux-1-dev", "flux1"),
    "QwenImage": ("Qwen-Image", "qwen_image"),
    "ZImage": ("Z-Image", "z_image"),
    "Lumina2": ("lumina-2", "lumina2"),
    "HunyuanImage21": ("hunyuan-image-2.1", "hunyuan_image_2_1"),
    "HunyuanVideo15": ("hunyuan-video-1.5", "hunyuan_video_1_5"),
    "HunyuanVideo": ("hunyuan-video", "hunyuan_video"),
    "Kandinsky5": ("Kandinsky-5", "kandinsky5"),
    "WAN22": ("wan2.2", "wan"),
    "WAN21": ("wan2.1", "wan"),
    "LTXV": ("lightricks-ltx-video", "ltxv"),
}


def model_spec(family: Iterable[str], prediction: str) -> tuple[str, str]:
    """modelspec.architecture of the base model, and ss_base_model_version. A model that the table lacks has the name of
    the host's class.

    Args:
        family: the model's names, the most special first.
        prediction: see denoiser.Denoiser; Stable Diffusion 2 is two architectures by it.
    """
    names = list(family)
    found = next((MODEL_SPECS[name] for name in names if name in MODEL_SPECS), None)
    if found is None:
        own = names[0].lower() if names else "unknown"
        return own, own
    if found[1] == "sd_v2" and prediction == "v":
        return "stable-diffusion-v2-768-v", "sd_v2_v"
    return found
