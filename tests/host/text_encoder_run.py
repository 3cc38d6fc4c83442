"""Text encoders of the host's own classes, trained beside tiny UNets of SD 1.5 and SDXL; prints JSON.

Run by test_text_encoder.py in the host's folder. "gradient" is the worst relative error of a matrix' gradient against
transformers' CLIP with peft's LoRA on the same weights, "fp16" and "fp8" the same for weights of that type, "levels"
that of memory levels against resident after two steps, "repeats" and "resumes" whether runs are the same to the bit,
"file" relative errors of conditionings with the saved files on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.utils
import families
import peft
import torch
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.lora import apply_lora, read_lora  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.text_encoder import HostTextEncoder  # type: ignore[import-not-found]
from lora_kiln.nodes.host.running.headless import load_text_encoder  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import (  # type: ignore[import-not-found]
    AdapterConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from lora_kiln.trainer.dataset.encoded import (  # type: ignore[import-not-found]
    EncodedDataset,
    EncodedItem,
    write_conditioning,
)
from lora_kiln.trainer.errors import KilnError  # type: ignore[import-not-found]
from lora_kiln.trainer.events import Stopped  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import export_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.save import save_lora  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.runfile import RunFile  # type: ignore[import-not-found]
from safetensors.torch import save_file
from tiny_models import make_model
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import nodes as host_nodes

CPU = torch.device("cpu")
L, G = {"hidden_size": 32, "num_attention_heads": 2}, {"hidden_size": 48, "num_attention_heads": 2}
LAYERS = {"num_hidden_layers": 3, "intermediate_size": 64}
ADAPTER = AdapterConfig(rank=4, alpha=8.0, dropout=0.0)
CASES = {
    "SD 1.5": replace(families.SD_CASES["SD 1.5"], dims={**families.UNET, "context_dim": 32}),
    "SDXL": replace(
        families.SD_CASES["SDXL"],
        dims={**families.SDXL, "context_dim": 80, "adm_in_channels": 48 + 6 * 256},
    ),
}
WORDS = ("a zorb, red, round", "a square on the left")


def make_clip(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A CLIP with random weights, held as a loader node leaves it: as inference tensors."""

    class Target:
        params: dict[str, Any] = {}
        clip = comfy.sd1_clip.SD1ClipModel if name == "SD 1.5" else comfy.sdxl_clip.SDXLClipModel
        tokenizer = comfy.sd1_clip.SD1Tokenizer if name == "SD 1.5" else comfy.sdxl_clip.SDXLTokenizer

    options: dict[str, Any] = {"clip_l_model_config": {**L, **LAYERS}, "clip_g_model_config": {**G, **LAYERS}}
    options |= {"dtype": dtype, "load_device": CPU, "offload_device": CPU}
    with torch.inference_mode():
        clip = comfy.sd.CLIP(Target(), model_options=options)
        draws = torch.Generator().manual_seed(5)
        for key, parameter in sorted(clip.cond_stage_model.named_parameters()):
            values = torch.randn(parameter.shape, generator=draws)
            if parameter.ndim > 1:
                values *= 0.5 if "embedding" in key else parameter.shape[-1] ** -0.5
            else:
                values = 0.1 * values + (1 if key.endswith("weight") else 0)
            parameter.copy_(values)
    return clip


# Gradients against transformers and peft


def theirs(clip: Any, part: str, words: str, matrices: dict[str, Tensor], loss_of: Any) -> dict[str, Tensor]:
    """Gradients of one encoder's matrices, by transformers' CLIP with peft's LoRA and plain autograd."""
    own = getattr(clip.cond_stage_model, part)
    sizes = {**(L if part == "clip_l" else G), **LAYERS, "vocab_size": 49408, "eos_token_id": 49407}
    sizes |= {
        "hidden_act": "quick_gelu" if part == "clip_l" else "gelu",
        "projection_dim": sizes["hidden_size"],
    }
    kind = CLIPTextModel if part == "clip_l" else CLIPTextModelWithProjection
    model = kind(CLIPTextConfig(**sizes)).float().eval()
    # transformers 5 has no text_model in its CLIPTextModel
    prefix = "" if any(k.startswith("text_model.") for k in model.state_dict()) else "text_model."
    state = {k.removeprefix(prefix): v.float().clone() for k, v in own.transformer.state_dict().items()}
    missing, _ = model.load_state_dict(state, strict=False)
    assert not [k for k in missing if "position_ids" not in k], missing
    wanted = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=wanted)
    )
    trained = {
        prefix + name.removeprefix("base_model.model.").replace(".default", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(matrices[f"{part}.transformer.{name}"])
    tokens = clip.tokenize(words)
    tokens = next(iter(tokens.values())) if len(tokens) == 1 else tokens[part[-1]]
    ids = torch.tensor([[t for t, *_ in section] for section in tokens])
    found = model(input_ids=ids, output_hidden_states=True)
    loss_of(part, found).backward()
    return {f"{part}.transformer.{name}": p.grad for name, p in trained.items() if p.grad is not None}


def gradient_error(name: str, dtype: torch.dtype = torch.float32) -> float:
    clip = make_clip(name, dtype)
    encoder = HostTextEncoder(clip, CPU, prompt_syntax=False)
    draws = torch.Generator().manual_seed(9)
    parts = ["clip_l"] if name == "SD 1.5" else ["clip_l", "clip_g"]
    width = {"clip_l": 32, "clip_g": 48}
    weigh = {part: torch.randn(1, 77, width[part], generator=draws) for part in parts}
    weigh_pooled = torch.randn(1, 32 if name == "SD 1.5" else 48, generator=draws)
    with encoder.session():
        adapter = make_adapter(encoder.module, ADAPTER, 0, host_weights, CPU)
        filled = {k: 0.1 * torch.randn(v.shape, generator=draws) for k, v in adapter.state_dict().items()}
        adapter.load_state_dict(filled)
        entry = encoder.encode(WORDS[0])
        loss = (entry["cross_attn"] * torch.cat([weigh[p] for p in parts], -1)).sum()
        (loss + (entry["pooled_output"] * weigh_pooled).sum()).backward()
        layers = dict(zip(adapter.layers, [x.matrices for x in adapter.layers.values()], strict=True))
        ours = {
            f"{layer}.lora_{'AB'[i]}.weight": m.grad
            for layer, both in layers.items()
            for i, m in enumerate(both)
        }

    def loss_of(part: str, found: Any) -> Tensor:
        if name == "SD 1.5":
            return (found.last_hidden_state * weigh[part]).sum() + (found.pooler_output * weigh_pooled).sum()
        loss = (found.hidden_states[-2] * weigh[part]).sum()
        return loss + (found.text_embeds * weigh_pooled).sum() if part == "clip_g" else loss

    expected: dict[str, Tensor] = {}
    for part in parts:
        expected |= theirs(clip, part, WORDS[0], filled, loss_of)
    compared = [k for k, g in ours.items() if g is not None and g.any()]
    assert len(compared) == {"SD 1.5": 36, "SDXL": 60}[name], len(
        compared
    )  # CLIP-L's last layer is not used in SDXL
    return max(float((ours[k] - expected[k]).norm() / expected[k].norm()) for k in compared)


# Runs


def dataset_of(name: str, clip: Any, folder: Path) -> EncodedDataset:
    items = []
    for number, words in enumerate(WORDS):
        forms = (words, ", ".join(reversed(words.split(", "))))
        latent = folder / f"{number}.safetensors"
        draws = torch.Generator().manual_seed(20 + number)
        save_file({"latent": 2 * torch.randn(4, 8, 8, generator=draws)}, latent)
        paths = []
        for form, text in enumerate((*forms, "")):
            [(cond, extras)] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
            paths.append(folder / f"{number}-{form}-text.safetensors")
            write_conditioning(paths[-1], {**extras, "cross_attn": cond})
        item = EncodedItem(latent, paths[0], words, (4, 8, 8), more_texts=(paths[1],), words=forms)
        items.append(replace(item, empty_text=paths[2], caption_dropout=0.2))
    return EncodedDataset(tuple(items))


def config_of(steps: int, **options: Any) -> TrainConfig:
    optimizer = {"learning_rate": 1e-3, "text_encoder_learning_rate": 2e-3, "schedule": "constant"}
    optimizer |= {"warmup_ratio": 0.0, "weight_decay": 0.0, **options.pop("optimizer", {})}
    return TrainConfig(
        steps=steps,
        batch_size=2,
        checkpoint_every=2,
        adapter=replace(ADAPTER, dropout=0.1),
        optimizer=OptimizerConfig(**optimizer),
        objective=ObjectiveConfig(),
        **options,
    )


@contextmanager
def world(name: str) -> Iterator[tuple[Any, Any, EncodedDataset, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        model, clip = make_model(CASES[name]), make_clip(name)
        yield model, clip, dataset_of(name, clip, Path(folder)), Path(folder)


def run(
    model: Any, clip: Any | None, dataset: EncodedDataset, folder: Path, config: TrainConfig, **options: Any
) -> Any:
    text = None if clip is None else HostTextEncoder(clip, CPU, prompt_syntax=False)
    denoiser = HostDenoiser(model, (2, 4, 8, 8), [] if text is None else [text.patcher])
    return train(
        denoiser,
        dataset,
        config,
        run_folder=folder,
        weights=host_weights,
        text_encoder=text,
        memory=config.memory,
        **options,
    )


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def repeats_and_resumes(name: str) -> dict[str, Any]:
    with world(name) as (model, clip, dataset, folder):
        before = {k: v.clone() for k, v in clip.cond_stage_model.state_dict().items()}
        whole = run(model, clip, dataset, folder / "whole", config_of(4))
        again = run(model, clip, dataset, folder / "again", config_of(4))
        resumed = run(
            model,
            clip,
            dataset,
            folder / "again",
            config_of(4),
            resume_from=folder / "again" / "step-00000002",
        )
        keys = [k for k in whole.adapter if k.startswith("text_encoders.")]
        return {
            "repeats": same(whole.adapter, again.adapter),
            "resumes": same(whole.adapter, resumed.adapter) and whole.losses == resumed.losses,
            "moved": sum(bool(whole.adapter[k].any()) for k in keys if k.endswith("lora_B.weight")),
            "untouched": same(before, clip.cond_stage_model.state_dict()),
        }


def levels(name: str) -> float:
    """The worst relative difference of a matrix after 2 steps, between resident and the other levels."""
    found = {}
    with world(name) as (model, clip, dataset, folder):
        for level, parts in (("resident", False), ("checkpoint activations", False), ("stream blocks", True)):
            memory = MemoryConfig(level=level, recompute_parts=parts)
            done = run(model, clip, dataset, folder / f"{level}{parts}", config_of(2, memory=memory))
            found[level] = done.adapter
    plain = found.pop("resident")
    return max(
        float((other[k] - plain[k]).norm() / plain[k].norm().clamp(min=1e-9))
        for other in found.values()
        for k in plain
    )


def conditioning(clip: Any, words: str) -> list[Tensor]:
    with torch.inference_mode():
        [(cond, extras)] = clip.encode_from_tokens_scheduled(clip.tokenize(words))
    return [cond, extras["pooled_output"]]


def worst(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True))


def _without_alpha(lora: dict[str, Tensor]) -> list[str]:
    return sorted(k for k in lora if not k.endswith(".alpha"))


def saved_files(name: str) -> dict[str, Any]:
    """The host's own loader and ours on the files of each format, against the clone that was trained."""
    found: dict[str, Any] = {}
    with world(name) as (model, clip, dataset, folder):
        config = config_of(4, optimizer={"learning_rate": 0.01, "text_encoder_learning_rate": 0.01})
        done = run(model, clip, dataset, folder / "run", config)
        lora = export_adapter(done.adapter, config.adapter)
        encoder = HostTextEncoder(clip, CPU, prompt_syntax=False)
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(encoder.session())
            own = make_adapter(encoder.module, config.adapter, 0, host_weights, CPU)
            prefix = "text_encoders."
            state = {k.removeprefix(prefix): t for k, t in done.adapter.items() if k.startswith(prefix)}
            own.load_state_dict(state)
            own.disable_dropout()
            entry = encoder.encode(WORDS[0])
        trained = [entry["cross_attn"], entry["pooled_output"]]
        plain = conditioning(clip, WORDS[0])
        for format in ("comfyui", "kohya", "diffusers"):
            path = save_lora(folder / f"{format}.safetensors", lora, format=format)
            raw = comfy.utils.load_torch_file(str(path), safe_load=True)
            with torch.inference_mode():
                theirs_model, theirs_clip = comfy.sd.load_lora_for_models(model, clip, raw, 1.0, 1.0)
                ours_model, ours_clip = apply_lora(model, clip, read_lora(path), 1.0)
            host_made, ours = conditioning(theirs_clip, WORDS[0]), conditioning(ours_clip, WORDS[0])
            found[format] = {
                "host": worst(host_made, trained),
                "ours": worst(ours, trained),
                "same": all(map(torch.equal, ours, host_made)),
                "plain": worst(plain, trained),
                "patches": [len(x.patcher.patches) for x in (theirs_clip, ours_clip)],
                "of the model": [len(x.patches) for x in (theirs_model, ours_model)],
                "names": sorted(k for k in raw if "self_attn_v_proj" in k or "self_attn.v_proj" in k)[0],
                "round trip": _without_alpha(read_lora(path)) == _without_alpha(lora),
            }
    return found


def refusals(name: str) -> list[str]:
    said = []
    with world(name) as (model, clip, dataset, folder):
        without = EncodedDataset(tuple(replace(i, words=()) for i in dataset.items))
        for other in (without, replace(dataset, text_encoder="another")):
            try:
                run(model, clip, other, folder / "refused", config_of(1))
            except KilnError as error:
                said.append(str(error))
        try:
            HostTextEncoder(comfy.sd.CLIP(_without_layers()), CPU, False)
        except KilnError as error:
            said.append(str(error))
    return said


def headless() -> list[str]:
    """What the shell makes of a run file's text encoder: loaded, another one, none that is named."""
    clip = make_clip("SD 1.5")

    class Loader:
        FUNCTION = "load"

        def load(self, clip_name: str) -> tuple[Any]:
            assert clip_name == "a.safetensors"
            return (clip,)

    host_nodes.NODE_CLASS_MAPPINGS["CLIPLoader"] = Loader
    good = HostTextEncoder(clip, CPU, False, {"loader": "CLIPLoader", "clip_name": "a.safetensors"}).source
    said = []
    for source in (good, {**good, "fingerprint": "x"}, {"loader": "", "fingerprint": "x"}):
        try:
            loaded = load_text_encoder(RunFile(model={}, text_encoder=source))
            said.append("loaded" if loaded is clip else "another")
        except KilnError as error:
            said.append(str(error))
    return said


def loaded_together() -> list[int]:
    """How many networks each of the host's loads has brought in for a run."""
    counts: list[int] = []
    original = comfy.model_management.load_models_gpu

    def load(models: list[Any], *args: Any, **options: Any) -> Any:
        counts.append(len(models))
        return original(models, *args, **options)

    with world("SD 1.5") as (model, clip, dataset, folder):
        comfy.model_management.load_models_gpu = load
        try:
            run(model, clip, dataset, folder / "run", config_of(1))
        finally:
            comfy.model_management.load_models_gpu = original
    return counts


def interrupted() -> str:
    """What an interrupt of the host becomes that arrives inside the text encoder."""

    def interrupt() -> None:
        raise comfy.model_management.InterruptProcessingException

    encoder = HostTextEncoder(make_clip("SD 1.5"), CPU, False)
    original = comfy.model_management.throw_exception_if_processing_interrupted
    comfy.model_management.throw_exception_if_processing_interrupted = interrupt
    try:
        with encoder.session():
            encoder.encode(WORDS[0])
    except Stopped:
        return "stopped"
    finally:
        comfy.model_management.throw_exception_if_processing_interrupted = original
    return "not noticed"


def _without_layers() -> Any:
    text = inprocess.load_file("tiny_text", inprocess.REPO / "tests" / "tiny_wan" / "text.py")
    return text.TinyTarget()


figures: dict[str, Any] = {
    name: {"gradient": gradient_error(name), "file": saved_files(name)} for name in CASES
}
figures["SD 1.5"] |= {
    "fp16": gradient_error("SD 1.5", torch.float16),
    "fp8": gradient_error("SD 1.5", torch.float8_e4m3fn),
    "levels": levels("SD 1.5"),
    **repeats_and_resumes("SD 1.5"),
    "refused": refusals("SD 1.5"),
    "headless": headless(),
    "loaded": loaded_together(),
    "interrupted": interrupted(),
}
print(json.dumps(figures))
