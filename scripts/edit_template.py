"""The template that trains an edit on Flux Kontext, from pairs of pictures."""

from __future__ import annotations

from typing import Any

from scripts import model_downloads as files
from scripts.training_templates import flux, show
from scripts.workflow_graph import BLUE, BROWN, GREEN, PURPLE, YOURS, Graph, Info, Link
from trainer.config.presets import PRESETS

TITLE = "Flux Kontext - an edit from pairs"
SIDE = 512
INSTRUCTION = "make it a pencil drawing"
NOTE = f"""## An edit, learned from pairs

1. Choose the model files in **1 Model**; ComfyUI offers the download of those that are missing.
2. Make pictures of {2 * SIDE} x {SIDE} pixels: left what there is before the edit, right what shall come out. Put 20-50
   into **ComfyUI/input/my_pairs**, each beside a text file of the same name with the instruction ({INSTRUCTION}).
3. Press R, so that the folder is in the list, then **Run**.
4. At the end your picture in step 4 is edited without the LoRA and with it.

The left half goes into the conditioning as the reference, the right half is what is trained on. Qwen-Image-Edit and
Omnigen2 learn in the same way. Flux Kontext has 12 billion parameters; its file is in fp8, 12 GB."""


def edit_template(info: Info) -> Graph:
    """Pairs -> two halves -> a reference and a target -> a LoRA, and a picture edited with it."""
    graph = Graph(info)
    graph.step("", "")
    graph.column(440)
    graph.note(NOTE, 480)
    graph.step("1 Model", BLUE)
    graph.column(340)
    model, clip, vae = flux(files.FLUX_KONTEXT, files.FLUX_T5_FP8)(graph)
    graph.step("2 Pictures", GREEN)
    graph.column(360)
    graph.add("pairs", "LoadImageTextDataSetFromFolder", color=YOURS, folder="my_pairs")
    for name, x in (("before", 0), ("after", SIDE)):
        graph.add(name, "ImageCrop", title=name, image=("pairs", 0), width=SIDE, height=SIDE, x=x, y=0)
    graph.column(340)
    graph.add("texts", "CLIPTextEncode", title="instructions", clip=clip, text=("pairs", 1))
    for name in ("before", "after"):
        graph.add(f"{name} latent", "VAEEncode", title=f"encode: {name}", pixels=(name, 0), vae=vae)
    graph.add("reference", "ReferenceLatent", conditioning=("texts", 0), latent=("before latent", 0))
    graph.add("encoded", "KilnEncodedFromLatents", latents=("after latent", 0), positive=("reference", 0))
    chosen: dict[str, Any] = {"preset": "standard", **PRESETS["standard"]}
    graph.step("3 Train", BROWN)
    graph.column(360)
    graph.add("memory", "KilnMemorySettings", level="auto")
    graph.column(400)
    graph.add(
        "train",
        "KilnTrainLora",
        tall=830,
        model=model,
        encoded=("encoded", 0),
        settings=("memory", 0),
        **chosen,
    )
    graph.step("4 Use", PURPLE)
    graph.column(360)
    graph.add("lora", "KilnSaveLora", lora=("train", 0), filename_prefix="kiln/kontext_edit")
    graph.add("plot", "KilnLossPlot", tall=300, run=("train", 3))
    graph.add("apply", "KilnApplyLora", model=model, lora=("train", 0), strength=1.0)
    _edited(graph, model, clip, vae)
    return graph


def _edited(graph: Graph, model: Link, clip: Link, vae: Link) -> None:
    """One picture, edited without and with the LoRA."""
    graph.column(340)
    graph.add("picture", "LoadImage", tall=340, color=YOURS, image="example.png")
    graph.add("scaled", "FluxKontextImageScale", image=("picture", 0))
    graph.add("latent", "VAEEncode", pixels=("scaled", 0), vae=vae)
    graph.column(340)
    graph.add(
        "positive", "CLIPTextEncode", tall=130, color=YOURS, title="instruction", clip=clip, text=INSTRUCTION
    )
    graph.add("with picture", "ReferenceLatent", conditioning=("positive", 0), latent=("latent", 0))
    graph.add("guided", "FluxGuidance", conditioning=("with picture", 0), guidance=2.5)
    graph.add("negative", "ConditioningZeroOut", conditioning=("positive", 0))
    graph.column(340)
    for name, link in {"without LoRA": model, "with LoRA": ("apply", 0)}.items():
        graph.add(
            f"{name} sampler",
            "KSampler",
            title=f"edit: {name}",
            model=link,
            positive=("guided", 0),
            negative=("negative", 0),
            latent_image=("latent", 0),
            seed=1,
            steps=20,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
        )
        graph.add(f"{name} decode", "VAEDecode", samples=(f"{name} sampler", 0), vae=vae)
    graph.column(420)
    for name in ("without LoRA", "with LoRA"):
        show(graph, name, video=False, fps=1)
