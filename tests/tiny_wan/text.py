"""A text encoder without weights for the tiny Wan: every word is a fixed random vector.

The real Wan reads prompts with UMT5 (5.7 billion parameters). The small world needs only to tell words
apart, so a word's vector is drawn from a generator seeded with the word itself: nothing to train, store or
download, and a word that the model never saw has a vector too, which is what lets a LoRA teach a new one.
Word order is lost: cross-attention sees a bag of words.

    clip = load_clip()      # a real comfy.sd.CLIP: the host's own CLIPTextEncode works on it

The host is imported inside functions only, so this file can be imported without it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 4096
"""What Wan's text_embedding takes in; the width of UMT5."""

LENGTH = 16
"""Tokens in a prompt, zero-padded; a longer prompt becomes several such sections, as with other encoders."""

NAME = "tiny_words"
"""Key of this encoder's tokens in what `clip.tokenize` returns."""

PAD = ""
"""The token that means nothing; its vector is zero."""

Token = tuple[str, float]
"""A word and its weight: "(zorb:1.2)" gives ("zorb", 1.2)."""


@functools.lru_cache(maxsize=4096)
def word_vector(word: str) -> Tensor:  # (4096,) float32, each entry of unit variance
    """The word's vector; the same on every machine and in every run."""
    with torch.inference_mode(False):  # a cached tensor must stay usable in training
        if word == PAD:
            return torch.zeros(WIDTH)
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
        return torch.randn(WIDTH, generator=torch.Generator("cpu").manual_seed(seed))


def split_words(text: str) -> list[str]:
    """Lowercase words without punctuation."""
    return re.findall(r"\w+", text.lower())


def encode_prompt(text: str) -> Tensor:  # (16 * sections, 4096)
    """The embedding of a prompt without weights, no host needed; the empty prompt is all zeros."""
    words = split_words(text)
    words += [PAD] * (-len(words) % LENGTH or (LENGTH if not words else 0))
    return torch.stack([word_vector(word) for word in words])


class TinyTokenizer:
    """Text to sections of weighted words, in the form that comfy.sd.CLIP passes on."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        """The arguments are what the host passes to every tokenizer; neither matters here."""

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **_options: Any
    ) -> dict[str, list[list[Token]]]:
        """Returns: sections of 16 tokens, each (word, weight), or (word, weight, number) on request."""
        from comfy.sd1_clip import token_weights

        tokens = [(word, weight) for part, weight in token_weights(text, 1.0) for word in split_words(part)]
        numbered: list[Any] = [
            (*token, index + 1) if return_word_ids else token for index, token in enumerate(tokens)
        ]
        padding = (PAD, 1.0, 0) if return_word_ids else (PAD, 1.0)
        sections = [numbered[start : start + LENGTH] for start in range(0, len(numbered), LENGTH)] or [[]]
        return {NAME: [section + [padding] * (LENGTH - len(section)) for section in sections]}

    def untokenize(self, token_weight_pair: list[Token]) -> list[tuple[Token, str]]:
        return [(pair, pair[0]) for pair in token_weight_pair]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class TinyTextModel(nn.Module):
    """Weighted words to embeddings, in the form that comfy.sd.CLIP calls its models."""

    disable_offload = True
    """Tells newer hosts (0.33) not to stream the weights: there are none."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.dtypes = {torch.float32 if dtype is None else dtype}

    def encode_token_weights(self, tokens: dict[str, list[list[Token]]]) -> tuple[Tensor, None]:
        """Returns: embedding (1, 16 * sections, 4096) float32, and no pooled output, as with UMT5."""
        from comfy.model_management import intermediate_device

        flat = [token for section in tokens[NAME] for token in section]
        embedding = torch.stack([word_vector(token[0]) * token[1] for token in flat])
        return embedding.unsqueeze(0).to(intermediate_device()), None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """There are no layers to choose from."""

    def reset_clip_options(self) -> None:
        """Nothing was set."""

    def load_sd(self, state_dict: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        """Returns: missing and unexpected keys; there is nothing to load."""
        return [], list(state_dict)


class TinyTarget:
    """What comfy.sd.CLIP asks for: the two classes and their arguments."""

    params: dict[str, Any] = {}
    clip = TinyTextModel
    tokenizer = TinyTokenizer


def load_clip() -> Any:
    """A comfy.sd.CLIP of this encoder."""
    import comfy.sd

    return comfy.sd.CLIP(TinyTarget(), parameters=0)
