"""The graphs that the host tests queue, in the server's API format."""

from __future__ import annotations

from typing import Any

from scripts.host import RunningHost

Prompt = dict[str, Any]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def loaders() -> Prompt:
    """The tiny model, VAE and text encoder."""
    return {
        "model": node("UNETLoader", unet_name="tiny_wan.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="tiny_wan_vae.safetensors"),
        "clip": node("TinyWanTextEncoder"),
    }


def dataset(folder: str = "tiny_concept", **options: Any) -> Prompt:
    """From a folder to encoded items."""
    load = {"folder": folder, "repeats": 1, "recursive": False, "on_bad_file": "stop", **options}
    return {
        "dataset": node("KilnLoadDataset", **load),
        "encoded": node(
            "KilnEncodeDataset", dataset=["dataset", 0], vae=["vae", 0], clip=["clip", 0], resolution=64
        ),
    }


def training(**options: Any) -> Prompt:
    """A training node with small settings."""
    settings = {
        "preset": "custom",
        "steps": 4,
        "learning_rate": 2e-3,
        "rank": 4,
        "alpha": 4.0,
        "batch_size": 4,
        "seed": 0,
        "resume": "new run",
        **options,
    }
    return {"train": node("KilnTrainLora", model=["model", 0], encoded=["encoded", 0], **settings)}


def saved(**options: Any) -> Prompt:
    """The LoRA into a file; an output node, so that the rest of the graph runs."""
    values = {"filename_prefix": "test/lora", "format": "comfyui", "dtype": "fp32", **options}
    return {"save": node("KilnSaveLora", lora=["train", 0], **values)}


def sampling(
    name: str, model: list[Any], batch: int = 2, steps: int = 4, text: str = "a red circle"
) -> Prompt:
    """Sampler, decoder and saved images; the save node is called `name`."""
    return {
        f"{name} positive": node("CLIPTextEncode", clip=["clip", 0], text=text),
        f"{name} negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        f"{name} empty": node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=batch),
        f"{name} sampler": node(
            "KSampler",
            model=model,
            positive=[f"{name} positive", 0],
            negative=[f"{name} negative", 0],
            latent_image=[f"{name} empty", 0],
            seed=5,
            steps=steps,
            cfg=3.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        f"{name} decode": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["vae", 0]),
        name: node("SaveImage", images=[f"{name} decode", 0], filename_prefix=f"test/{name}"),
    }


def probe() -> Prompt:
    """The model's state, see probe_pack."""
    return {"probe": node("ProbeModel", model=["model", 0])}


def sampled_files(host: RunningHost, outputs: dict[str, Any], name: str) -> list[bytes]:
    """The pixels of the images that a sampling branch saved."""
    import numpy as np
    from PIL import Image

    folder = host.base / "output"
    return [
        np.asarray(Image.open(folder / image["subfolder"] / image["filename"])).tobytes()
        for image in outputs[name]["images"]
    ]
