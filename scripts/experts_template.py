"""The template that trains both experts of Wan 2.2 14B in one queue, and draws with both LoRAs."""

from __future__ import annotations

from typing import Any

from scripts import model_downloads as files
from scripts.training_templates import NEGATIVE, PROMPT, pictures, show, unet
from scripts.workflow_graph import BLUE, BROWN, GREEN, PURPLE, YOURS, Graph, Info, Link, opened
from trainer.config.presets import PRESETS, RANGES

TITLE = "Wan 2.2 14B - both experts"
EXPERTS = {
    name: f"{name}, text to video" for name in ("high noise", "low noise")
}  # presets of Objective Settings
MEET = RANGES[EXPERTS["high noise"]]["min_timestep"]
SIDE, STEPS, SHIFT = 512, 20, 8.0
NOTE = f"""## Both experts of Wan 2.2, one after the other

1. Choose the model files in **1 Model**; ComfyUI offers the download of those that are missing.
2. Put 20-100 pictures, or 10-30 clips, into **ComfyUI/input/my_dataset**, each beside a text file of the same name.
3. Press **Run**. The pictures are encoded once. The expert for high noise is trained first, then the one for low noise;
   only one of them is on the card at a time.
4. At the end a picture is drawn with both LoRAs, the first half of the steps by one expert and the rest by the other.

Each expert sees its own share of the noise: {MEET} to 1 and 0 to {MEET}, by the presets on Objective Settings; for
image to video they meet at 0.9. High noise decides composition and motion, low noise the details: for a face or a style
the low one may be enough. For pictures while it trains, connect the other expert to **other_expert** on Sample
Settings.
Green nodes are yours to set."""


def experts_template(info: Info) -> Graph:
    """One dataset -> two LoRAs of matching names -> a picture by both."""
    graph = opened(info, NOTE, 480)
    graph.step("1 Model", BLUE)
    graph.column(340)
    for name, model in {"high noise": files.WAN22_HIGH, "low noise": files.WAN22_LOW}.items():
        unet(graph, model, name)
    text, vae = files.WAN_TEXT, files.WAN_VAE
    graph.add("clip", "CLIPLoader", models=[text], clip_name=text.name, type="wan", device="default")
    graph.add("vae", "VAELoader", models=[vae], vae_name=vae.name)
    graph.step("2 Pictures", GREEN)
    graph.column(360)
    pictures(graph, ("clip", 0), ("vae", 0), SIDE)
    graph.step("3 Train", BROWN)
    for name in EXPERTS:
        _train(graph, name)
    graph.step("4 Use", PURPLE)
    _use(graph)
    return graph


def _train(graph: Graph, name: str) -> None:
    levels: dict[str, Any] = {"preset": EXPERTS[name], **RANGES[EXPERTS[name]]}
    graph.column(360)
    if name == "high noise":
        graph.add("memory", "KilnMemorySettings", level="auto")
    graph.add(
        f"{name} range",
        "KilnObjectiveSettings",
        title=f"range: {name}",
        settings=("memory", 0),
        **levels,
    )
    graph.column(400)
    chosen: dict[str, Any] = {"preset": "standard", **PRESETS["standard"]}
    graph.add(
        f"{name} train",
        "KilnTrainLora",
        tall=830,
        title=f"train: {name}",
        model=(name, 0),
        encoded=("encoded", 0),
        settings=(f"{name} range", 0),
        **chosen,
    )


def _use(graph: Graph) -> None:
    """Files of matching names, and the two halves of the sampling."""
    graph.column(360)
    models: dict[str, Link] = {}
    graph.add(
        "loras",
        "KilnSaveLora",
        title="save both",
        lora=("high noise train", 0),
        lora_low_noise=("low noise train", 0),
        filename_prefix="kiln/wan22_lora",
    )
    for name in EXPERTS:
        trained: Link = (f"{name} train", 0)
        graph.add(f"{name} apply", "KilnApplyLora", model=(name, 0), lora=trained, strength=0.8)
        graph.add(f"{name} shift", "ModelSamplingSD3", model=(f"{name} apply", 0), shift=SHIFT)
        models[name] = (f"{name} shift", 0)
    graph.column(360)
    graph.add(
        "positive", "CLIPTextEncode", tall=130, color=YOURS, title="prompt", clip=("clip", 0), text=PROMPT
    )
    graph.add(
        "negative", "CLIPTextEncode", tall=100, title="negative prompt", clip=("clip", 0), text=NEGATIVE
    )
    graph.add("empty", "EmptyHunyuanLatentVideo", width=SIDE, height=SIDE, length=1, batch_size=1)
    latent: Link = ("empty", 0)
    graph.column(340)
    for name, first in {"high noise": True, "low noise": False}.items():
        half: dict[str, Any] = {"start_at_step": 0 if first else STEPS // 2}
        if first:
            half["end_at_step"] = STEPS // 2
        graph.add(
            f"{name} sampler",
            "KSamplerAdvanced",
            title=f"sample: {name}",
            model=models[name],
            positive=("positive", 0),
            negative=("negative", 0),
            latent_image=latent,
            add_noise="enable" if first else "disable",
            noise_seed=1,
            steps=STEPS,
            cfg=3.5,
            sampler_name="euler",
            scheduler="simple",
            return_with_leftover_noise="enable" if first else "disable",
            **half,
        )
        latent = (f"{name} sampler", 0)
    graph.column(420)
    graph.add("with both decode", "VAEDecode", samples=latent, vae=("vae", 0))
    show(graph, "with both", video=False, fps=16)
