"""The tiny text encoder with a block of layers that a LoRA can train; as it is, the block adds nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tiny_wan.text import WIDTH, TinyTextModel, TinyTokenizer

HIDDEN = 64


class Block(nn.Module):
    """x + W2 gelu(W1 x), with W2 = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = (comfy.ops.manual_cast.Linear(*n) for n in ((WIDTH, HIDDEN), (HIDDEN, WIDTH)))
        with torch.no_grad():
            draws = torch.Generator().manual_seed(11)
            self.fc1.weight.copy_(torch.randn(HIDDEN, WIDTH, generator=draws) / WIDTH**0.5)
            self.fc1.bias.zero_()
            self.fc2.weight.zero_()
            self.fc2.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(nn.functional.gelu(self.fc1(x)))


class WordsModel(TinyTextModel):
    disable_offload = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blocks = nn.ModuleList([Block()])

    def encode_token_weights(self, tokens: dict[str, list[list[tuple[str, float]]]]) -> tuple[Tensor, None]:
        words, pooled = super().encode_token_weights(tokens)
        here = words.to(next(self.parameters()).device)
        is_word = here.ne(0).any(-1, keepdim=True)
        return (self.blocks[0](here) * is_word).to(words.device), pooled


class Target:
    params: dict[str, Any] = {}
    clip, tokenizer = WordsModel, TinyTokenizer


def load_clip() -> Any:
    import comfy.sd

    return comfy.sd.CLIP(Target(), parameters=0)
