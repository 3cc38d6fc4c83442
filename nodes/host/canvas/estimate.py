"""The memory plan of a run before anything is loaded: from the header of the model's file and the widgets' values.

The plan is the one that the run makes (memory/plan.py), on a network without weights.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import folder_paths
import torch

from ....trainer.config import TrainConfig
from ....trainer.dataset.browse import Part
from ....trainer.dataset.buckets import Bucket, BucketOptions
from ....trainer.dataset.largest import FRAMES_PER_LATENT, largest_item, latent_cells
from ....trainer.errors import KilnError
from ....trainer.loop.advice import advise_on_size
from ....trainer.memory.estimate import PARTS, TextSizes
from ....trainer.model_files.meta_model import Shapes, meta_model, read_shapes, read_text_shapes
from ....trainer.safefile import is_safetensors
from .. import paths
from ..memory.plan import plan_memory, text_sizes, trained_layers

# The loaders whose file tells the network, and the host's folder that their file is listed in
FOLDERS = {"UNETLoader": "diffusion_models", "CheckpointLoaderSimple": "checkpoints"}
# The loaders of text encoders, and the folder that their files are listed in
TEXT_FILES = {
    "CheckpointLoaderSimple": "checkpoints",
    **dict.fromkeys(("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader"), "text_encoders"),
}
# What the host's UNETLoader offers as weight_dtype
WEIGHT_DTYPES = {
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def estimate_before_loading(
    loader: str,
    file: str,
    weight_dtype: str,
    config: dict[str, Any],
    resolution: int,
    max_frames: int,
    datasets: list[dict[str, Any]] | None = None,
    fps: float = BucketOptions.fps,
    max_upscale: float = BucketOptions.max_upscale,
    text_encoder: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Plan the memory of a run.

    Args:
        loader: class of the node that loads the model, a key of FOLDERS.
        file: as the host lists it for that loader.
        weight_dtype: as the loader has it.
        config: some of TrainConfig.to_dict(); the rest are defaults.
        resolution, max_frames, fps, max_upscale: as Encode Dataset has them.
        datasets: what is read, "folder", "recursive", "validation_folder" and "control_folders" of each; None: not
            known, so the largest item is a square of the resolution and of all frames.
        text_encoder: how the CLIP is loaded that is trained too, "loader" (a key of TEXT_FILES) and "files".

    Returns:
        "sentence" and "advice", in bytes "total" and "parts" by name, and the largest item's "width", "height" and
        "frames".

    Raises:
        KilnError: the file is not listed or cannot be read, or a setting is out of range.
    """
    _check_types(config, TrainConfig().to_dict())
    settings = TrainConfig.from_dict(config)
    path = _listed(loader, file)
    shapes, in_file = read_shapes(path)
    device = comfy.model_management.get_torch_device()
    dtype, compute = _precision(WEIGHT_DTYPES.get(weight_dtype, in_file), shapes, device, weight_dtype)
    channels, shrink = _latent(shapes)
    options = BucketOptions(resolution=resolution, max_frames=max_frames, fps=fps, max_upscale=max_upscale)
    largest = _largest(datasets, options)
    height, width = max(1, largest.height // shrink), max(1, largest.width // shrink)
    frames = 1 + (largest.frames - 1) // FRAMES_PER_LATENT
    network = meta_model(shapes, dtype)
    is_video = len(getattr(network, "patch_size", ())) == 3
    latent = (channels, frames, height, width) if is_video else (channels, height, width)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=network), patches={})
    text = None if text_encoder is None else _text_sizes(text_encoder, settings, device)
    denoiser = SimpleNamespace(device=device, dtype=compute)
    plan = plan_memory(model, denoiser, settings, latent, path, text)
    parts = {name: getattr(plan, name) for name in PARTS}
    whole = sum(p.numel() for p in network.parameters())
    _, trained = trained_layers(network, settings)
    advice = [plan.advice, advise_on_size(trained, whole, settings)]
    return {
        "sentence": plan.sentence(),
        "advice": " ".join(filter(None, advice)),
        "total": plan.total,
        "parts": parts,
        "width": largest.width,
        "height": largest.height,
        "frames": largest.frames,
    }


def _text_sizes(asked: dict[str, Any], settings: TrainConfig, device: torch.device) -> TextSizes:
    """Of the text encoders in these files, in the type that the host's loader gives them."""
    loader, files = str(asked.get("loader")), asked.get("files")
    if loader not in TEXT_FILES or not isinstance(files, list) or not files:
        raise KilnError(
            f"A CLIP loaded by {loader!r} cannot be planned for; use one of {', '.join(TEXT_FILES)}."
        )
    usual = comfy.model_management.text_encoder_dtype(device)
    weights = trained = activations = 0
    for file in files:
        shapes, in_file = read_text_shapes(_listed_in(TEXT_FILES[loader], str(file)))
        dtype = in_file if in_file.itemsize == 1 else usual
        sizes = text_sizes(meta_model(shapes, dtype), settings)
        weights, trained = weights + sizes.weights, trained + sizes.trained
        activations += sizes.activations
    return TextSizes(weights, trained, activations)


def _largest(datasets: list[dict[str, Any]] | None, options: BucketOptions) -> Bucket:
    """Of the items that the folders hold; a folder that is not there (yet) says nothing."""
    whole = Bucket(options.max_frames, options.resolution, options.resolution)
    if datasets is None:
        return whole
    found = []
    for each in datasets:
        try:
            folder = paths.dataset_folder(each["folder"])
            controls = paths.control_folders(each.get("control_folders", ""), folder)
        except KilnError:
            return whole
        part = Part(each["recursive"], each["validation_folder"].strip(), controls)
        found.append(largest_item(folder, part, options, paths.facts_cache()))
    return max(filter(None, found), key=latent_cells, default=whole)


def _check_types(values: dict[str, Any], usual: dict[str, Any]) -> None:
    """Settings that come as JSON have the types of the defaults; unknown ones are left to TrainConfig."""
    for name, value in values.items():
        like = usual.get(name, value)
        if isinstance(like, dict) and isinstance(value, dict):
            _check_types(value, like)
        elif type(value) is not type(like) and not (type(value) is int and type(like) is float):
            raise KilnError(f"{name} is {value!r}; it must be a {type(like).__name__}.")


def _listed(loader: str, file: str) -> Path:
    if loader not in FOLDERS:
        raise KilnError(
            f"A model loaded by {loader!r} cannot be planned for; use one of {', '.join(FOLDERS)}."
        )
    return _listed_in(FOLDERS[loader], file)


def _listed_in(folder: str, file: str) -> Path:
    if file not in folder_paths.get_filename_list(folder):
        raise KilnError(f"The host lists no model file {file!r}; choose one on the loader.")
    if not is_safetensors(file):
        raise KilnError(
            f"The model file {file!r} is not safetensors, so its shapes cannot be read beforehand."
        )
    return Path(folder_paths.get_full_path_or_raise(folder, file))


def _precision(
    wanted: torch.dtype, shapes: Shapes, device: torch.device, weight_dtype: str
) -> tuple[torch.dtype, torch.dtype]:
    """How the host will hold the weights and compute, asked in the words of its own loader."""
    manage = comfy.model_management
    dtype = wanted
    if weight_dtype not in WEIGHT_DTYPES:
        count = sum(torch.Size(s).numel() for s in shapes.values())
        dtype = manage.unet_dtype(model_params=count, weight_dtype=wanted)
    compute = manage.unet_manual_cast(dtype, device) or dtype
    if compute == torch.float16 and manage.should_use_bf16(device):  # as HostDenoiser chooses
        compute = torch.bfloat16
    return dtype, compute


def _latent(shapes: Shapes) -> tuple[int, int]:
    """Channels of a latent, and pixels per place along a side: Wan 2.2's 48-channel VAE shrinks 16 times, others 8."""
    first = shapes.get("patch_embedding.weight", ())
    channels = first[1] if len(first) > 1 else 16
    return channels, 16 if channels == 48 else 8
