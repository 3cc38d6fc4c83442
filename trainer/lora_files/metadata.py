"""What a LoRA file says of itself in its header, so that managers can show it and the canvas can open its graph.

    modelspec.*        Stability's Model Metadata Standard 1.0.0 (https://github.com/Stability-AI/ModelSpec)
    ss_*, sshs_*       sd-scripts' and musubi-tuner's words, as far as other programs read them
    lora_kiln.*        our settings and fingerprints
    workflow, prompt   the graph, as the host's canvas loads it from a dropped file

Never a path or a user's name: a model is told by its file's name, and `without_local_paths` goes over the graph. What
depends on the file (hash, ranks, name) is written when the file is, see `of_file`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor

from ..config import Prediction, TrainConfig
from ..dataset.caption_variants import COMMAS
from ..dataset.encoded import EncodedDataset, EncodedItem
from ..families import model_spec
from ..parsers import parse_json
from ..safefile import HASH
from .formulas import group_by_layer, rank_of, scale_of
from .lora_weights import LoraWeights

GRAPH = ("workflow", "prompt")
MOST_TAGS = 1000
IMPLEMENTATIONS = {
    "comfyui": "https://github.com/comfyanonymous/ComfyUI",
    "kohya": "https://github.com/kohya-ss/sd-scripts",
    "diffusers": "diffusers",
    "peft": "diffusers",
}

_FIGURES = re.compile(
    r"lora_kiln\.(config|dataset|base_model|steps|merge)"
    r"|modelspec\.(sai_model_spec|architecture|implementation|date|resolution|prediction_type|hash_sha256)"
    r"|ss_(base_model_version|network_(module|dim|alpha)|learning_rate|text_encoder_lr|optimizer|lr_scheduler|steps|max_train_steps"
    r"|num_train_images|batch_size_per_device|gradient_accumulation_steps|seed|resolution)"
    r"|sshs_model_hash"
)
_PROMPTS = ("prompts", "negative_prompt")  # in the settings of samples


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a trained LoRA comes from."""

    config: TrainConfig
    dataset: EncodedDataset
    base_model: str  # fingerprint
    steps: int  # optimizer steps done
    prediction: Prediction = "flow"
    family: Sequence[str] = ()  # see Denoiser.family
    model_name: str = ""  # of the model's file, without its ending
    with_text: bool = False  # whether the text encoder was trained too
    graph: Mapping[str, Any] = field(
        default_factory=dict
    )  # "workflow" and "prompt", as the host hands them to a node
    thumbnail: bytes = b""  # a small JPEG


def origin_metadata(origin: Origin) -> dict[str, str]:
    """The metadata of a trained LoRA. safetensors metadata is text only, so values are JSON."""
    config, optimizer = origin.config, origin.config.optimizer
    architecture, version = model_spec(origin.family, origin.prediction)
    trained = [item for item in origin.dataset.items if item.role != "validation"]
    size = _usual_size(trained)
    trigger = origin.dataset.trigger_word or _common_tag(trained)
    picture = base64.b64encode(origin.thumbnail).decode()
    tags = _tag_counts(trained)
    found = {
        "lora_kiln.config": json.dumps(config.to_dict()),
        "lora_kiln.dataset": origin.dataset.fingerprint,
        "lora_kiln.base_model": origin.base_model,
        "lora_kiln.steps": str(origin.steps),
        "lora_kiln.class_word": origin.dataset.class_word,
        "lora_kiln.slider": origin.dataset.slider,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "modelspec.resolution": f"{size[0]}x{size[1]}" if size else "",
        "modelspec.prediction_type": origin.prediction,
        "modelspec.trigger_phrase": trigger,
        "modelspec.thumbnail": f"data:image/jpeg;base64,{picture}" if picture else "",
        "ss_base_model_version": version,
        "ss_sd_model_name": origin.model_name,
        "ss_network_module": "networks.lora" if config.adapter.kind in ("lora", "dora") else "lycoris.kohya",
        "ss_network_dim": str(config.adapter.rank),
        "ss_network_alpha": f"{config.adapter.alpha:g}",
        "ss_learning_rate": f"{optimizer.learning_rate:g}",
        "ss_text_encoder_lr": f"{optimizer.text_encoder_learning_rate:g}" if origin.with_text else "",
        "ss_optimizer": optimizer.optimizer,
        "ss_lr_scheduler": optimizer.schedule,
        "ss_steps": str(origin.steps),
        "ss_max_train_steps": str(config.steps),
        "ss_num_train_images": str(sum(item.repeats for item in trained)),
        "ss_batch_size_per_device": str(config.batch_size),
        "ss_gradient_accumulation_steps": str(optimizer.gradient_accumulation),
        "ss_seed": str(config.seed),
        "ss_resolution": f"({size[0]}, {size[1]})" if size else "",
        "ss_tag_frequency": json.dumps({"dataset": tags}, ensure_ascii=False) if tags else "",
    }
    graph = {name: json.dumps(origin.graph[name]) for name in GRAPH if origin.graph.get(name) is not None}
    return {name: text for name, text in found.items() if text} | graph


def merged_metadata(loras: Sequence[Mapping[str, Tensor]], how: str) -> dict[str, str]:
    """The metadata of a merge: what all its parts say alike of their model, and their titles.

    Args:
        how: the method and the weights, in words.
    """
    parts: list[dict[str, str]] = [getattr(lora, "metadata", {}) for lora in loras]
    found = {"lora_kiln.merge": how}
    alike = ("sai_model_spec", "architecture", "resolution", "prediction_type")
    for name in (*(f"modelspec.{key}" for key in alike), "ss_base_model_version", "ss_sd_model_name"):
        values = {part.get(name, "") for part in parts}
        if len(values) == 1 and values != {""}:
            found[name] = values.pop()
    if "modelspec.architecture" in found:
        found["modelspec.date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        found |= {"ss_network_dim": "", "ss_network_alpha": ""}  # see of_file
        titles = [part.get("modelspec.title", f"LoRA {i}") for i, part in enumerate(parts, 1)]
        found["modelspec.merged_from"] = ", ".join(titles)
    return found


def of_file(
    metadata: Mapping[str, str], lora: Mapping[str, Tensor], stem: str, format: str, title: str = ""
) -> dict[str, str]:
    """Complete what other programs read with what depends on the file. Hashes become safefile.HASH, in whose place
    write_safetensors puts the hash of the tensors' bytes. A file that says nothing to other programs is left so.

    Args:
        lora: in our keys.
        stem: the file's name without its ending.
        format: one of keys.FORMATS.
        title: where the metadata has none; that of the file's name without.
    """
    found = {k: v for k, v in metadata.items() if not k.startswith(("modelspec.hash_", "sshs_"))}
    if "modelspec.architecture" in found:
        found["modelspec.implementation"] = IMPLEMENTATIONS[format]
        found.setdefault("modelspec.title", title or _without_counter(stem))
    if any(k.startswith(("modelspec.", "ss_")) for k in found):
        found |= {"modelspec.hash_sha256": f"0x{HASH}", "sshs_model_hash": HASH}
    if any(k.startswith("ss_") for k in found):
        found["ss_output_name"] = stem
    layers = [tensors for tensors in group_by_layer(lora).values() if rank_of(tensors)]
    if "ss_network_dim" in found and layers:
        ranks = Counter((rank_of(tensors), scale_of(tensors)) for tensors in layers)
        (rank, scale), _ = ranks.most_common(1)[0]
        found |= {"ss_network_dim": str(rank), "ss_network_alpha": f"{scale * (rank or 0):g}"}
    return found


def figures_only(lora: LoraWeights) -> LoraWeights:
    """The same LoRA without a graph, words of the user, names of files or a picture in its metadata: only figures and
    names of methods stay, of other programs' too."""
    kept = {k: v for k, v in lora.metadata.items() if _FIGURES.fullmatch(k)}
    if "lora_kiln.config" in kept:
        config = parse_json(kept["lora_kiln.config"])
        config["sample"] = {k: v for k, v in config.get("sample", {}).items() if k not in _PROMPTS}
        kept["lora_kiln.config"] = json.dumps(config)
    return LoraWeights(lora, kept)


def without_local_paths(value: Any) -> Any:
    """JSON values with each text that is a path of this machine, or begins with a Windows drive or share, brought down
    to its last name: "C:\\Users\\me\\photos" -> "photos"."""
    if isinstance(value, dict):
        return {k: without_local_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_local_paths(v) for v in value]
    if isinstance(value, str) and (name := _last_name(value.strip().strip('"'))):
        return name
    return value


def shareable(lora: LoraWeights) -> LoraWeights:
    """The same LoRA for a file that is given away: the paths in its graph are brought down to their last names."""
    metadata = dict(lora.metadata)
    for name in GRAPH:
        try:
            metadata[name] = json.dumps(without_local_paths(parse_json(metadata[name])))
        except (KeyError, ValueError):  # none, or another program's
            continue
    return LoraWeights(lora, metadata)


def _last_name(text: str) -> str:
    """Of an absolute path; nothing of any other text."""
    if re.match(r"[A-Za-z]:[\\/]|\\\\[^\\]+\\", text) and "\n" not in text:
        return PureWindowsPath(text).name
    first = re.match(r"(~|/[^/\n]+)/[^\n]*$", text)
    if first and (first[1] == "~" or os.path.isdir(first[1])):
        return PurePosixPath(text).name
    return ""


def _usual_size(items: Sequence[EncodedItem]) -> tuple[int, int] | None:
    """Width and height in pixels at which most items are trained."""
    sizes = Counter((s.target_width, s.target_height) for item in items for s in item.sizes[:1])
    return sizes.most_common(1)[0][0] if sizes else None


def _tags(caption: str) -> list[str]:
    return [tag for part in COMMAS.split(caption) if (tag := part.strip())]


def _tag_counts(items: Sequence[EncodedItem]) -> dict[str, int]:
    """In how many captions each tag is, as sd-scripts counts them: in small letters; the most frequent 1000."""
    return dict(Counter(tag.lower() for item in items for tag in _tags(item.caption)).most_common(MOST_TAGS))


def _common_tag(items: Sequence[EncodedItem]) -> str:
    """The tag that begins every caption, where there are several captions that are not all the same."""
    captions = {item.caption for item in items if item.role == "subject"}
    firsts = {(_tags(caption) or [""])[0] for caption in captions}
    return firsts.pop() if len(firsts) == 1 and len(captions) > 1 else ""


def _without_counter(stem: str) -> str:
    """ "zorb_00001_" -> "zorb": the host's counter says nothing to a reader."""
    return re.sub(r"_\d{5}_?$", "", stem) or stem
