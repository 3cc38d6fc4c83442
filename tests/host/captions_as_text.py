"""Captions through the host's own tokenizers, word for word and as prompts; prints JSON.

Run by test_encoding.py in the host's folder. For each tokenizer: the weights that a caption with brackets gets both
ways, whether the literal tokens are those of the same words with escaped brackets, and the readings that a cache tells
apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.sd
from comfy.sd1_clip import SD1Tokenizer
from comfy.sdxl_clip import SDXLTokenizer
from comfy.text_encoders.flux import FluxTokenizer
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from lora_kiln.nodes.host.encoding import encoder  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models import text_encoder  # type: ignore[import-not-found]

CAPTION = "a (red:1.5) zorb (sitting), embedding:nothing here"
ESCAPED = "a \\(red:1.5\\) zorb \\(sitting\\), embedding:nothing here"
SAME = [ESCAPED.partition(",")[0], "smile :)", "a zorb", "", "back\\slash"]  # that mean the same in a prompt
KINDS = (SD1Tokenizer, SDXLTokenizer, FluxTokenizer, QwenImageTokenizer)


def clip_of(tokenizer: Any) -> Any:
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = tokenizer, {}
    return clip


def encoder_of(clip: Any, prompt_syntax: bool) -> Any:
    """A HostEncoder for its readings alone: no weights are needed."""
    made = encoder.HostEncoder.__new__(encoder.HostEncoder)
    made._clip, made._as_prompt, made._reads_syntax = clip, clip, None
    if not prompt_syntax:
        made._clip = text_encoder.word_for_word(clip)
    return made


def weights(tokens: dict[str, Any]) -> list[float]:
    return sorted(
        {round(float(pair[1]), 3) for batches in tokens.values() for batch in batches for pair in batch}
    )


def ids(tokens: dict[str, Any]) -> list[int]:
    return [int(pair[0]) for batches in tokens.values() for batch in batches for pair in batch]


found = {}
for kind in KINDS:
    clip = clip_of(kind())
    words = encoder_of(clip, prompt_syntax=False)
    prompts = encoder_of(clip, prompt_syntax=True)
    escaped = clip_of(kind()).tokenize(ESCAPED)
    found[kind.__name__] = {
        "prompt": weights(clip.tokenize(CAPTION)),
        "literal": weights(words._clip.tokenize(CAPTION)),
        "same": ids(words._clip.tokenize(CAPTION)) == ids(escaped),
        "taggers": ids(words._clip.tokenize(ESCAPED)) == ids(escaped),
        "readings": [words.reading_of(CAPTION), words.reading_of("a zorb"), prompts.reading_of(CAPTION)],
        "unchanged": [text for text in SAME if ids(words._clip.tokenize(text)) == ids(clip.tokenize(text))],
        "same readings": [words.reading_of(text) for text in SAME],
    }
print(json.dumps(found))
