"""Captions in batches through tiny text encoders of the host's own classes; prints JSON.

Run by test_encoding.py in the host's folder. "error" is the largest difference from what the host gives for each
caption alone, relative to the largest value; "other" that from another caption; "calls" how often the encoders ran.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.text_encoders.t5
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel
from comfy.text_encoders.flux import FluxTokenizer
from lora_kiln.nodes.host.encoding.encoder import HostEncoder  # type: ignore[import-not-found]
from lora_kiln.trainer.conditioning import tensors_in  # type: ignore[import-not-found]

CPU = torch.device("cpu")
CLIP_L = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
    "layer_norm_eps": 1e-5,
}
T5 = {
    "d_ff": 64,
    "d_kv": 16,
    "d_model": 32,
    "num_heads": 2,
    "num_layers": 2,
    "vocab_size": 32128,
    "model_type": "t5",
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "relative_attention_num_buckets": 32,
}
LONG = ", ".join(f"a red zorb number {n}" for n in range(20))
CAPTIONS = ["a red zorb", "", "two blue zorbs", LONG, "night", "(soft) light", "a", "b c", "d e f"]


class Counted(SDClipModel):
    """Counts how often it runs."""

    calls = 0

    def forward(self, tokens: Any) -> Any:
        Counted.calls += 1
        return super().forward(tokens)


class Mixing(Counted):
    """An encoder whose rows depend on each other."""

    def forward(self, tokens: Any) -> Any:
        states, *rest = super().forward(tokens)
        return (states + states.mean(0, keepdim=True), *rest)


class CountedClip(SD1ClipModel):
    """Stable Diffusion 1.5's, tiny."""

    def __init__(self, kind: type[SDClipModel] = Counted) -> None:
        super().__init__(device=CPU, dtype=torch.float32, clip_model=kind, textmodel_json_config=CLIP_L)


class Two(torch.nn.Module):
    """A T5 and a CLIP, as Flux has them."""

    def __init__(self) -> None:
        super().__init__()
        self.clip_l = Counted(device=CPU, dtype=torch.float32, textmodel_json_config=CLIP_L)
        self.t5xxl = Counted(
            device=CPU,
            dtype=torch.float32,
            layer="last",
            textmodel_json_config=T5,
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            enable_attention_masks=True,
            zero_out_masked=True,
            return_attention_masks=True,
        )

    def set_clip_options(self, options: dict[str, Any]) -> None:
        self.clip_l.set_clip_options(options)
        self.t5xxl.set_clip_options(options)

    def reset_clip_options(self) -> None:
        self.clip_l.reset_clip_options()
        self.t5xxl.reset_clip_options()

    def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
        states, _, extra = self.t5xxl.encode_token_weights(tokens["t5xxl"])
        _, pooled = self.clip_l.encode_token_weights(tokens["l"])
        return states, pooled, extra


def clip_of(model: torch.nn.Module, tokenizer: Any) -> Any:
    draws = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draws) * 0.2)
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model, clip.tokenizer, clip.tokenizer_options = model, tokenizer, {}
    clip.patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    clip.layer_idx, clip.use_clip_schedule, clip.apply_hooks_to_conds = None, False, None
    return clip


def encoder_of(clip: Any) -> Any:
    """A HostEncoder without a VAE."""
    made = HostEncoder.__new__(HostEncoder)
    made._clip = made._as_prompt = clip
    made._together, made._compared = True, False
    return made


def far(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference, relative to the largest value; infinite where the structures differ."""
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    if one.keys() != other.keys() or any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-9)) for a, b in pairs
    )


@torch.inference_mode()
def compared(clip: Any, captions: list[str]) -> dict[str, Any]:
    alone_by, together_by = encoder_of(clip), encoder_of(clip)
    Counted.calls = 0
    alone = [alone_by.encode_text(caption) for caption in captions]
    calls_alone, Counted.calls = Counted.calls, 0
    together = together_by.encode_texts(captions)
    calls, Counted.calls = Counted.calls, 0
    together_by.encode_texts(captions)
    return {
        "error": max(far(a, b) for a, b in zip(together, alone, strict=True)),
        "other": far(together[0], alone[2]),
        "calls_alone": calls_alone,
        "calls": calls,
        "next_calls": Counted.calls,
    }


@torch.inference_mode()
def beside_a_thread(clip: Any) -> float:
    """A thread encodes with the same CLIP at the very moment when the encoders answer from memory."""
    encoder = encoder_of(clip)
    wanted = encoder.encode_text("another thread")
    found: list[Any] = []

    def run() -> None:
        with torch.inference_mode():
            found.append(clip.encode_from_tokens_scheduled(clip.tokenize("another thread"))[0])

    real = clip.tokenize

    def tokenize(text: str) -> Any:
        if text == "night" and not found:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        return real(text)

    clip.tokenize = tokenize
    encoder.encode_texts(CAPTIONS)
    del clip.tokenize
    cond, extras = found[0]
    return far({**extras, "cross_attn": cond}, wanted)


one = clip_of(CountedClip(), SD1Tokenizer())
two = clip_of(Two(), FluxTokenizer())
vector = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))


class Embedding(SD1Tokenizer):
    """A textual inversion of two vectors behind every text."""

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> Any:
        tokens = super().tokenize_with_weights(text, return_word_ids, **options)
        tokens["l"][0][3:5] = [(vector[0], 1.0), (vector[1], 1.0)]
        return tokens


found = {
    "one encoder": compared(one, [c.replace("(", "").replace(")", "") for c in CAPTIONS]),
    "two encoders": compared(two, [c.replace("(", "").replace(")", "") for c in CAPTIONS]),
    "weights": compared(one, CAPTIONS),
    "mixing": compared(clip_of(CountedClip(Mixing), SD1Tokenizer()), CAPTIONS),
    "embedding": compared(clip_of(CountedClip(), Embedding()), CAPTIONS),
    "thread": beside_a_thread(one),
    "left": [name for name, module in two.cond_stage_model.named_modules() if "encode" in vars(module)],
}
print(json.dumps(found))
