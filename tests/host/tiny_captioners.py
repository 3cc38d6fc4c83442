"""Text encoders of the host's own classes that write about pictures (host 0.33), tiny and with random weights.

Import in the host's process: after inprocess.start(), or in a server.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.model_patcher
import comfy.sd
import torch

CPU = torch.device("cpu")
SMALL_VOCABULARY = 128  # at least 107: that is Gemma 3's sign of an answer's end
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SIGHT = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 2}


def clip_of(model: torch.nn.Module, tokenizer: Any) -> Any:
    """A CLIP as a loader node makes it."""
    draws = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=draws)
            size = 0.02 if "embed_tokens" in name else 0.2 if weight.ndim > 1 else 0.05
            weight.copy_(values * size + (weight.ndim < 2))
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model, clip.tokenizer, clip.tokenizer_options = model, tokenizer, {}
    clip.patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    clip.layer_idx, clip.use_clip_schedule, clip.apply_hooks_to_conds = None, False, None
    return clip


def clip_l() -> Any:
    """Of Stable Diffusion 1.5: it writes nothing."""
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel

    small = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 2}
    small |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    small |= {"max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407}
    options = {"device": CPU, "dtype": torch.float32, "textmodel_json_config": small}
    return clip_of(SD1ClipModel(clip_model=SDClipModel, **options), SD1Tokenizer())


def qwen3_vl() -> Any:
    """Takes several pictures; the host's own tokenizer."""
    from comfy.text_encoders import qwen3vl

    small = dataclasses.make_dataclass(
        "Small", [(k, int, v) for k, v in TEXT.items()], bases=(qwen3vl.Qwen3VL_4BConfig,)
    )
    name = "qwen3vl_4b"
    with (
        mock.patch.dict(qwen3vl.QWEN3VL_CONFIGS, {name: small}),
        mock.patch.dict(qwen3vl.QWEN3VL_VISION, {name: {**SIGHT, "deepstack_visual_indexes": [0]}}),
        mock.patch.dict(qwen3vl.QWEN3VL_VISION_COMMON, {"num_heads": 2}),
    ):
        model = qwen3vl.te(model_type=name)(device=CPU, dtype=torch.float32)
    return clip_of(model, qwen3vl.tokenizer(name)())


def qwen35() -> Any:
    """Takes several pictures; the host's own tokenizer."""
    from comfy.text_encoders import qwen35 as module

    linear = {f"linear_num_{kind}_heads": 2 for kind in ("key", "value")}
    small = {**TEXT, **linear, "head_dim": 64, "num_hidden_layers": 4, "vision": SIGHT}
    with mock.patch.dict(module.QWEN35_MODELS, {"qwen35_2b": small}), _with_vocabulary(module):
        model = module.te(model_type="qwen35_2b")(device=CPU, dtype=torch.float32)
        return clip_of(model, module.tokenizer("qwen35_2b")())


def gemma3() -> Any:
    """Takes one picture. Its tokenizer comes with its weights: a small one stands in."""
    from comfy.text_encoders import llama, lumina2

    sight = {**llama.GEMMA3_VISION_CONFIG, "hidden_size": 32, "intermediate_size": 32}
    sight |= {"num_attention_heads": 2, "num_hidden_layers": 2}
    kept = {name: getattr(llama.Gemma3_4B_Vision_Config, name) for name in ("vision_config",)}
    llama.Gemma3_4B_Vision_Config.vision_config = sight
    small = dataclasses.make_dataclass(
        "Small",
        [(k, int, v) for k, v in {**TEXT, "vocab_size": SMALL_VOCABULARY}.items()],
        bases=(llama.Gemma3_4B_Vision_Config,),
    )
    try:
        with mock.patch.object(llama, "Gemma3_4B_Vision_Config", small):
            model = lumina2.te(model_type="gemma3_4b_vision")(device=CPU, dtype=torch.float32)
    finally:
        llama.Gemma3_4B_Vision_Config.vision_config = kept["vision_config"]
    pieces = torch.frombuffer(bytearray(_pieces()), dtype=torch.uint8)
    return clip_of(model, lumina2.NTokenizer(tokenizer_data={"spiece_model": pieces}))


def gemma4() -> Any:
    """Takes clips as such. Its tokenizer comes with its weights: a small one stands in."""
    from comfy.text_encoders import gemma4 as module

    sight = {**module.GEMMA4_VISION_CONFIG, "hidden_size": 32, "intermediate_size": 32}
    sight |= {"num_attention_heads": 2, "num_hidden_layers": 1, "head_dim": 16}
    sizes = {**TEXT, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 1, "vocab_size": 327}

    class Small(module.Gemma4_31B_Config):
        vision_config = sight
        head_dim, global_head_dim = 32, 32

    small = dataclasses.make_dataclass("Small", [(k, int, v) for k, v in sizes.items()], bases=(Small,))
    variant = module._make_variant(small)
    model = module.gemma4_te(model_class=variant)(device=CPU, dtype=torch.float32)
    for name, values in model.named_buffers():
        if name.endswith("layer_scalar"):  # comes with the weights
            values.fill_(1)
    return clip_of(model, variant.tokenizer(tokenizer_data={"tokenizer_json": _words()}))


@contextmanager
def _with_vocabulary(module: Any) -> Iterator[None]:
    """Copies of the host without its largest files lack the vocabulary. One like it follows from the merges: all bytes,
    then the merges in their order, filled up to the first of the special signs."""
    folder = Path(module.__file__).parent / "qwen35_tokenizer"
    if (folder / "vocab.json").is_file():
        yield
        return
    with tempfile.TemporaryDirectory() as name:
        copy = shutil.copytree(folder, Path(name) / folder.name)
        merges = (copy / "merges.txt").read_text("utf-8").splitlines()
        words = [*_byte_signs(), *("".join(m.split()) for m in merges if not m.startswith("#version"))]
        special = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))["added_tokens_decoder"]
        words += [f"<unused {n}>" for n in range(len(words), min(map(int, special)))]
        (copy / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}), "utf-8")
        with mock.patch.object(module, "__file__", str(Path(name) / "qwen35.py")):
            yield


def _byte_signs() -> list[str]:
    """A printable sign for each byte, as GPT-2 has them: the printable ones first, then the others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(n) for n in plain] + [chr(256 + n) for n in range(256 - len(plain))]


def _pieces() -> bytes:
    """A SentencePiece model of single letters, filled up to SMALL_VOCABULARY."""
    import sentencepiece

    made = io.BytesIO()
    text = ["abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;-_<>'"] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=made, vocab_size=SMALL_VOCABULARY, model_type="char",
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=9, hard_vocab_limit=False,
        user_defined_symbols=[f"<{n}>" for n in range(SMALL_VOCABULARY - 4)],
    )  # fmt: skip
    return made.getvalue()


def _words() -> bytes:
    """A tokenizer of single bytes with the signs that the host looks for."""
    vocab = {chr(n): n + 200 for n in range(33, 127)}
    vocab |= {"<unk>": 3, "<bos>": 2, "<eos>": 1, "<pad>": 0}
    vocab |= {f"<{n}>": n for n in range(4, 233) if n not in (105, 106, 107, 108)}
    signs = {
        "<|image|>": 258880,
        "<|video|>": 258884,
        "<|turn>": 105,
        "<turn|>": 106,
        "<|image>": 107,
        "<image|>": 108,
    }
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": n, "content": sign, "special": True, **plain} for sign, n in signs.items()]
    model = {"type": "BPE", "vocab": vocab | signs, "merges": [], "unk_token": "<unk>"}
    return json.dumps({"version": "1.0", "added_tokens": added, "model": model}).encode()


@contextmanager
def no_progress() -> Iterator[None]:
    """The host prints a bar for every answer."""
    import comfy.text_encoders.llama

    with mock.patch.object(comfy.text_encoders.llama, "tqdm", lambda steps, **_: steps):
        yield


MODELS = {"Qwen3-VL": qwen3_vl, "Qwen 3.5": qwen35, "Gemma 3": gemma3, "Gemma 4": gemma4}
