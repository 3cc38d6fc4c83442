"""Adapter: the shape of the update and the layers that get one."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained: the shape of the low-rank update W' = W + (alpha / rank) * B A."""

    rank: int = setting(
        64,
        "Inner dimension r of the update. More rank learns more detail and makes a larger file. "
        "Range 8-128 in common use; 32 for a quick trial, 96 for a character.",
        minimum=1,
        maximum=1024,
    )
    alpha: float = setting(
        32.0,
        "Scale of the update: it is multiplied by alpha / rank. Half of the rank up to the rank is usual.",
        minimum=0.001,
        maximum=4096.0,
        step=1.0,
    )
    dropout: float = setting(
        0.05,
        "Share of the inputs of each LoRA layer that is zeroed while training; 0.05-0.2 is usual. Raise it against "
        "overfitting.",
        minimum=0.0,
        maximum=0.9,
        step=0.01,
    )
    target_modules: str = setting(
        "",
        "Which layers get a LoRA. Empty: attention and MLP of the model's blocks (for Wan: q k v o ffn.0 ffn.2). "
        "Otherwise a list of name endings (q k v o; diffusers names such as to_q are understood) or one regular "
        "expression over the full layer name.",
    )
    exclude_modules: str = setting(
        "",
        "Layers to leave out of those chosen: a regular expression that is searched for in the full layer name, such "
        "as cross_attn. Empty leaves none out.",
    )
    kind: str = setting(
        "lora",
        "Form of the update. lora: the usual one and the fastest. dora: with a trained length for every output. loha, "
        "lokr: products of small matrices, smaller files. oft: rotates the outputs in blocks of about rank.",
        options=("lora", "dora", "loha", "lokr", "oft"),
    )
    rank_stabilised: bool = setting(
        False,
        "Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA), so that large ranks learn as fast as small "
        "ones. For lora and dora.",
    )
    init: str = setting(
        "default",
        "Start values. default: the update starts at zero. orthogonal: both matrices orthogonal, also zero in product. "
        "pissa: the layer's largest directions, learns faster; the file has twice the rank. For lora.",
        options=("default", "orthogonal", "pissa"),
    )
    rank_pattern: str = setting(
        "",
        "Other ranks for some layers, as expression=rank or expression=rank:alpha, comma separated; the expression is "
        "searched for in the full layer name and the first that is found counts. Example: ffn=16:8, self_attn=64.",
    )
    conv_rank: int = setting(
        0,
        "Rank of the LoRAs on the convolutions of a UNet's blocks (Stable Diffusion), 0 for none; kohya's conv_dim. "
        "Half of the rank or less is usual. For lora.",
        minimum=0,
        maximum=1024,
    )
    conv_alpha: float = setting(
        0.0,
        "Scale of the convolutions' updates: they are multiplied by conv_alpha / conv_rank. 0: the same share as alpha "
        "is of the rank.",
        minimum=0.0,
        maximum=4096.0,
        step=1.0,
    )
    rank_dropout: float = setting(
        0.0,
        "Share of the ranks (lora) or outputs (loha, lokr) that is switched off at each step; 0.1 is usual.",
        minimum=0.0,
        maximum=0.9,
        step=0.01,
    )
    max_weight_norm: float = setting(
        0.0,
        "A layer whose update has a larger Frobenius norm is scaled down to it after every step; 1 is usual, 0 "
        "switches it off. For lora.",
        minimum=0.0,
        maximum=1000.0,
        step=0.1,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
