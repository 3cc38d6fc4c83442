"""What is known of each model family, as data: the one place to describe a new one.

Everything a family leaves out has a default that holds for networks nobody has described: such a network trains, its
LoRA files keep the network's own layer names, and no layers are computed together. Read by:

    adapter/targets.py     which layers get an adapter when the user names none; names of target modules that are taken
    adapter/fused.py       which layers read the same tensor
    lora_files/keys.py     layer names in LoRA files of other tools; what a LoRA file is for
    noise_defaults.py      how noise levels are drawn, and which sizes the model is told, where the user says auto
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
        )
    ),
    re.IGNORECASE,
)


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

    block_list: re.Pattern[str] | None = None
    """The list of blocks in layer names, as a group in front of the block's number: r"((?:vace_)?blocks)". The blocks
    are called so in diffusers too."""

    diffusers_in_block: Mapping[str, str] = field(default_factory=dict)
    """Layer inside a block -> diffusers' name of it."""

    diffusers_outside: Mapping[str, str] = field(default_factory=dict)
    """Layer outside the blocks -> diffusers' name of it."""


_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}

WAN = Family(
    name="Wan",
    layers=re.compile(r"blocks\.\d+\.(self_attn|cross_attn|ffn)\."),
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
    block_list=re.compile(r"((?:vace_)?blocks)"),
    diffusers_in_block={
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
    },
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

FLUX = Family(
    name="Flux or HunyuanVideo",
    layers=re.compile(r"double_blocks|single_blocks|single_transformer_blocks"),
)

QWEN_IMAGE = Family(
    name="Qwen-Image",
    layers=re.compile(r"transformer_blocks[._]\d+[._](img_mlp|txt_mlp|attn[._]add_q_proj)"),
)

STABLE_DIFFUSION = Family(
    name="Stable Diffusion (UNet)",
    layers=re.compile(r"(down|up|input|output)_blocks|mid(dle)?_block"),
    shared_inputs={"attn1": (("to_q", "to_k", "to_v"),), "attn2": (("to_k", "to_v"),)},
)

STABLE_DIFFUSION_3 = Family(name="Stable Diffusion 3", layers=re.compile(r"joint_blocks"))

FAMILIES = (WAN, FLUX, QWEN_IMAGE, STABLE_DIFFUSION, STABLE_DIFFUSION_3)


def family_of_layers(layers: Iterable[str]) -> Family | None:
    """The family of a network or a LoRA file, by its layer names; None when none is recognised."""
    names = list(layers)
    return next((f for f in FAMILIES if any(f.layers.search(name) for name in names)), None)


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
