"""An AdapterConfig as the PeftConfig of its kind."""

from __future__ import annotations

import re
from typing import Any

import peft

from ..config import AdapterConfig
from .targets import layer_shape


def peft_config(config: AdapterConfig, targets: list[str]) -> peft.PeftConfig:
    """The PeftConfig of one kind of adapter on exactly these layers."""
    if config.kind == "dora":
        made = lora_config(config, targets)
        made.use_dora = True
        return made
    shapes = {t: layer_shape(t, config) for t in targets}
    common: dict[str, Any] = {
        "target_modules": target_pattern(targets),
        "module_dropout": config.dropout,
    }
    if config.kind == "oft":
        return peft.OFTConfig(r=0, oft_block_size=config.rank, use_cayley_neumann=False, **common)
    common |= {
        "r": config.rank,
        "alpha": config.alpha,
        "rank_pattern": {t.replace(".", r"\."): s.rank for t, s in shapes.items() if s.rank != config.rank},
        "alpha_pattern": {
            t.replace(".", r"\."): s.alpha for t, s in shapes.items() if s.alpha != config.alpha
        },
    }
    return peft.LoHaConfig(**common) if config.kind == "loha" else peft.LoKrConfig(**common)


def target_pattern(targets: list[str]) -> str:
    """The exact names as one anchored expression: a list would match endings, so that "head" also takes "x.head"."""
    return rf"^(?:{'|'.join(re.escape(t) for t in targets)})$"


def lora_config(config: AdapterConfig, targets: list[str]) -> peft.LoraConfig:
    """The LoraConfig of a plain LoRA, with rank and alpha of each layer."""
    shapes = {re.escape(t): layer_shape(t, config) for t in targets}
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=target_pattern(targets),
        bias="none",
        use_rslora=config.rank_stabilised,
        rank_pattern={t: s.rank for t, s in shapes.items() if s.rank != config.rank},
        alpha_pattern={t: s.alpha for t, s in shapes.items() if s.alpha != config.alpha},
    )
