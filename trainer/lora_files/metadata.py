"""What a LoRA file says of itself in its header, so that managers can show it and the canvas can open its graph.

    modelspec.*        Stability's Model Metadata Standard 1.0.0 (https://github.com/Stability-AI/ModelSpec)
    ss_*, sshs_*       sd-scripts' and musubi-tuner's words, as far as other programs read them
    lora_kiln.*        our settings and fingerprints
    workflow, prompt   the graph, as the host's canvas loads it from a dropped file

Never a path or a user's name: a model is told by its file's name, and `without_local_paths` goes over all texts. What
depends on the file (hash, ranks, name) is written when the file is, see `of_file`.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..config import Prediction, TrainConfig, without_prompts
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
    kept = {k: without_local_paths(v) for k, v in lora.metadata.items() if _FIGURES.fullmatch(k)}
    if "lora_kiln.config" in kept:
        config = _without_prompts(kept.pop("lora_kiln.config"))
        kept |= {"lora_kiln.config": config} if config else {}
    return LoraWeights(lora, kept)


def _without_prompts(text: str) -> str:
    """Our settings as JSON without the prompts of samples; "" for what is no settings."""
    try:
        config = parse_json(text)
        if not isinstance(config, dict):
            return ""
        return json.dumps(without_prompts(config))
    except (ValueError, RecursionError):
        return ""


def without_local_paths(value: Any) -> Any:
    """JSON values in which each path of a machine is brought down to its last name, wherever it stands in a text or a
    key: "see C:\\Users\\me\\photos" -> "see photos". A home folder's own name is left out; addresses
    of the web stay."""
    if isinstance(value, dict):
        found: dict[Any, Any] = {}
        namesakes: Counter[Any] = Counter()
        for key, each in value.items():
            new = name = without_local_paths(key)
            while new != key and (new in value or new in found):  # another folder's "photos"
                namesakes[name] += 1
                new = f"{name} ({namesakes[name] + 1})"
            found[new] = without_local_paths(each)
        return found
    if isinstance(value, list):
        return [without_local_paths(v) for v in value]
    return _without_paths(value) if isinstance(value, str) else value


def shareable(lora: LoraWeights) -> LoraWeights:
    """The same LoRA for a file that is given away: the paths in its metadata are brought down to their last names."""
    return LoraWeights(lora, {name: without_local_paths(text) for name, text in lora.metadata.items()})


_PATH_STARTS = re.compile(
    r"""
      (?P<kept> (?<![a-z0-9+.-]) (?!(?:file|smb|cifs|nfs|afp|sftp|ssh):)           # an address of the web
                [a-z][a-z0-9+.-]+:// [^\s"'<>?=\#]*
              | (?<![a-z0-9]) data:[a-z0-9/+.;=-]{0,100}, [a-z0-9+/=]* )          # a picture
    | (?<![a-z0-9]) file:(?:[\\/]|%2f|%5c)+
    | (?<![a-z0-9]) (?:smb|cifs|nfs|afp|sftp|ssh):[\\/]+                             # a share, by its address
    | (?<![a-z0-9_.~\\/:]) // (?=[\w.$-]+/[\w.$-])                                 # the same with slashes
    | (?<![a-z0-9_%]) (?:%2f|%5c)+ (?=(?:home|users)(?:%2f|%5c))                    # in an address
    | (?<![a-z0-9_]) [a-z]:[\\/] (?![()])                                        # a drive, no "a:\(b\)" of a prompt
    | (?<![a-z0-9_.:\\/]) \\\\+ (?=[\w.$?-][^\\/\s()]*[\\/])                       # a share
    | (?<![a-z0-9_.~\\/]) ~ (?:[a-z_][\w.-]*)? [\\/]
    | (?<![a-z0-9_.~\\/]) (?:(?:\.\.?)?[\\/])+
      (?= (?:[a-z][\\/])? (?:home|users|mnt|media|volumes|workspace|scratch|export|data|nfs|storage|private
          |cygdrive|srv|opt|tmp|var|usr|kaggle|content|notebooks|teamspace|gpfs|lustre|run)[\\/] | root(?![\w.-]) )
    | (?<![a-z0-9_.~\\/]) / (?=(?P<folder>[^\\/\n"]+)/)                         # a path if this machine has the folder
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_PATH_END = re.compile(r"""(?=[\n\r\t<>|]|\\*"|(?<=[\\/])\s)|(?<=\S)\.[A-Za-z]\w{0,7}(?=[\s,;])""", re.ASCII)
_CLOSING = {"'": "'", "(": ")", "[": "]", "{": "}", "`": "`"}
_HOMES = ("home", "users", "documents and settings")
_SLASHES = re.compile(r"(?:[\\/]|%2f|%5c)+", re.IGNORECASE)
_NO_NAME = re.compile(r"(root(?![\w.-])|~|[A-Za-z]:|file:|\?)", re.IGNORECASE)
_BEHIND = re.compile(r"[,;:)].*", re.DOTALL)


def _without_paths(text: str) -> str:
    if text.lstrip().startswith(("{", "[")):
        try:
            value = parse_json(text)
            new = without_local_paths(value)
            return text if new == value else json.dumps(new)
        except (ValueError, RecursionError):
            pass  # no JSON, or too deep: a text as any other
    starts = [
        m for m in _PATH_STARTS.finditer(text) if m["folder"] is None or os.path.isdir("/" + m["folder"])
    ]
    parts, done = [], 0
    limits = [*(m.start() for m in starts[1:]), len(text)]
    for start, limit in zip(starts, limits, strict=False):
        if start["kept"] is not None:
            continue
        end = _path_end(text, start, limit)
        parts += [text[done : start.start()], _last_name(text[start.start() : end])]
        done = end
    return "".join((*parts, text[done:]))


def _path_end(text: str, start: re.Match[str], end: int) -> int:
    """Where the path ends that begins there, `end` at most. Names may hold spaces, so in the midst of a line it is the
    whole rest of it, unless a bracket, a quote or a file's ending closes it."""
    closing = _CLOSING.get(text[start.start() - 1 : start.start()], "")
    if closing and (place := text.find(closing, start.end(), end)) >= 0:
        end = place
    found = _PATH_END.search(text, start.end(), end)
    return found.end() if found else end


def _last_name(path: str) -> str:
    """Of a path, and what stands behind it; of a home folder only the latter."""
    names = [name for name in _SLASHES.split(path) if name and name not in (".", "..")]
    if len(names) < 2 and _NO_NAME.match(names[0] if names else "~"):
        return names[0][4:] if names and names[0].lower().startswith("root") else ""
    if names == _own_folder() or (len(names) > 1 and names[-2].lower() in _HOMES):
        behind = _BEHIND.search(names[-1])
        return behind[0] if behind else ""
    return names[-1]


@functools.lru_cache(maxsize=1)
def _own_folder() -> list[str]:
    """The names that lead to the home folder of whoever runs this."""
    return [name for name in _SLASHES.split(os.path.expanduser("~")) if name]


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
