"""Writes a merged model as a folder for diffusers' `WanPipeline.from_pretrained`.

The transformer is written. The other components of a pipeline (vae, text encoder, tokenizer, scheduler) are not changed
by a merge, so they are taken from a pipeline folder that the user already has: as hard links where the disk allows it,
which take no space, else as copies. Without such a folder the result holds the transformer, the scheduler and
model_index.json.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import KilnError, shortened
from ..lora_files.keys import to_diffusers
from ..parsers import parse_json
from ..temporary import replacing_folder
from .safetensors_file import Entry, PlannedTensor, SafetensorsFile, write_tensors

INDEX = "model_index.json"
TRANSFORMER = "transformer"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER_CONFIG = Path("scheduler", "scheduler_config.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")  # never copied
LINK_FROM = 1 << 20  # bytes; smaller files are copied, so that editing one leaves the other alone

# As diffusers publishes Wan 2.1; other values are the classes' defaults
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,  # 480p; 5 suits 720p
    "num_train_timesteps": 1000,
}
COMPONENTS = {
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
FOR_IMAGES = {  # image to video
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "image_processor": ["transformers", "CLIPImageProcessor"],
}


def check_pipeline(pipeline: Path, config: Mapping[str, object]) -> None:
    """Raise KilnError unless a folder is a Wan pipeline whose transformer has this configuration."""
    index = _read_json(pipeline / INDEX)
    kind = str(index.get("_class_name"))
    if not kind.startswith("Wan") or TRANSFORMER not in index:
        raise KilnError(f"The pipeline {pipeline.name} is a {kind}; choose the folder of a Wan pipeline.")
    theirs = _read_json(pipeline / TRANSFORMER / "config.json")
    for name in ("num_layers", "num_attention_heads", "ffn_dim", "in_channels", "image_dim"):
        if name in theirs and theirs[name] != config[name]:
            raise KilnError(
                f"The pipeline {pipeline.name} is of another size: its transformer's {name} is {theirs[name]}, and the "
                f"model's is {config[name]}; choose the pipeline of the same model."
            )


def write_pipeline(
    source: SafetensorsFile,
    prefix: str,
    folder: Path,
    plan: Sequence[PlannedTensor],
    metadata: dict[str, str],
    tick: Callable[[int, int], None],
    pipeline: Path | None,
) -> str:
    """Write the folder of a merged Wan model.

    Args:
        source: the base file; the transformer's configuration follows from its shapes.
        prefix: of its tensors' names.
        folder: to write; an earlier one is replaced.
        plan: the transformer's tensors, under the base's names.
        metadata: of the file of weights.
        tick: told the bytes done and in all; may raise to abandon.
        pipeline: a pipeline folder to take the other components from.

    The folder is built under a temporary name and then takes its own.

    Returns:
        A sentence on the components that are missing, or "".

    Raises:
        KilnError: the base is no Wan, the pipeline is of another model, the folder holds other files, or the disk is
            full. Nothing of it is there then.
    """
    config = wan_config(source, prefix)
    if pipeline is not None:
        check_pipeline(pipeline, config)
        if folder.resolve() == pipeline.resolve():
            raise KilnError(f"{folder} is the pipeline itself; choose another name for the merged one.")
    renamed = [_renamed(source, each, prefix) for each in plan]
    images = config["image_dim"] is not None
    _check_replaceable(folder, pipeline)
    try:
        with replacing_folder(folder) as new:
            write_tensors(new / TRANSFORMER / WEIGHTS, renamed, metadata, tick)
            _write_json(new / TRANSFORMER / "config.json", config)
            if pipeline is None:
                return _write_without_pipeline(new, images)
            for name in _components(pipeline):
                _link_or_copy(pipeline / name, new / name)
    except OSError as error:
        raise KilnError(f"Cannot write {folder} ({error}); check free space and write permission.") from error
    return ""


def _check_replaceable(folder: Path, pipeline: Path | None) -> None:
    """Raise KilnError where a folder holds files that an earlier one of ours would not."""
    ours = {Path(TRANSFORMER, WEIGHTS), Path(TRANSFORMER, "config.json"), SCHEDULER_CONFIG, Path(INDEX)}
    ours.update(() if pipeline is None else _components(pipeline))
    there = (p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir()) if folder.is_dir() else ()
    other = next((name for name in there if name not in ours), None)
    if other is not None:
        raise KilnError(
            f"{folder} holds {shortened(other.as_posix(), 100)}, which would be lost; choose another name for the "
            "merged model, or remove it."
        )


def _renamed(source: SafetensorsFile, each: PlannedTensor, prefix: str) -> PlannedTensor:
    """A tensor under its name in diffusers; raises KilnError where there is none."""
    bare = each.entry.name[len(prefix) :]
    layer, _, kind = bare.rpartition(".")
    name = f"{to_diffusers(layer)}.{kind}" if kind in ("weight", "bias") else to_diffusers(bare)
    if name is None or name.startswith("None."):
        raise KilnError(
            f"{source.path.name} holds {bare}, for which diffusers has no name; save it as comfyui."
        )
    return PlannedTensor(Entry(name, each.entry.dtype, each.entry.shape), each.make)


def _write_without_pipeline(folder: Path, images: bool) -> str:
    """The scheduler and model_index.json; returns a sentence on the components that are missing.

    Args:
        images: whether the model is one from image to video.
    """
    components = COMPONENTS | (FOR_IMAGES if images else {})
    _write_json(folder / SCHEDULER_CONFIG, SCHEDULER)
    kind = "WanImageToVideoPipeline" if images else "WanPipeline"
    _write_json(folder / INDEX, {"_class_name": kind, **dict(sorted(components.items()))})
    missing = [name for name in components if name not in ("transformer", "scheduler")]
    return (
        f"; {kind}.from_pretrained needs {', '.join(missing)} beside it: choose a pipeline folder that has them, "
        "or pass them as arguments"
    )


def _components(pipeline: Path) -> list[Path]:
    """All files that are taken from a pipeline folder, relative to it: everything but the transformer."""
    found = (path.relative_to(pipeline) for path in sorted(pipeline.rglob("*")) if path.is_file())
    return [
        name
        for name in found
        if not any(part.startswith(".") for part in name.parts)
        and name.parts[0] != TRANSFORMER
        and name.suffix not in PICKLED
    ]


def _link_or_copy(path: Path, target: Path) -> None:
    """A hard link for files of LINK_FROM bytes and more, where the disk allows it; else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()  # a download cache holds links; a hard link to a link would break with it
    if path.stat().st_size >= LINK_FROM:
        try:
            os.link(path, target)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(path, target)


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, object]:
    """A JSON object; raises KilnError where the file is missing or damaged."""
    try:
        content = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise KilnError(
            f"{path.parent.name}/{path.name} of the pipeline cannot be read ({error}); choose a whole pipeline folder."
        ) from error
    if not isinstance(content, dict):
        raise KilnError(f"{path.parent.name}/{path.name} is damaged; choose a whole pipeline folder.")
    return content


def wan_config(source: SafetensorsFile, prefix: str) -> dict[str, object]:
    """The config.json of diffusers' WanTransformer3DModel, from the shapes of a file's tensors.

    Args:
        source: the file.
        prefix: of its tensors' names.

    Raises:
        KilnError: the file holds no Wan.
    """
    shapes = {name[len(prefix) :]: entry.shape for name, entry in source.entries.items()}
    needed = (
        "patch_embedding.weight",
        "head.head.weight",
        "blocks.0.ffn.0.weight",
        "text_embedding.0.weight",
    )
    if not all(name in shapes for name in needed):
        raise KilnError(
            f"{source.path.name} is not a Wan model in its own keys; only those are written for diffusers."
        )
    patch = shapes["patch_embedding.weight"]
    dim, heads = patch[0], patch[0] // 128
    image = shapes.get("img_emb.proj.1.weight")
    positions = shapes.get("img_emb.emb_pos")
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(patch[2:]),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": patch[1],
        "out_channels": shapes["head.head.weight"][0] // (patch[2] * patch[3] * patch[4]),
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "num_layers": 1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("blocks.")),
        "cross_attn_norm": "blocks.0.norm3.weight" in shapes,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None if image is None else image[1],
        "added_kv_proj_dim": dim if "blocks.0.cross_attn.k_img.weight" in shapes else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None if positions is None else positions[1],
    }
