"""The templates that train an edit from pairs of pictures: Flux Kontext and Qwen-Image-Edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts import model_downloads as files
from scripts.training_templates import flux, separate, show
from scripts.workflow_graph import BLUE, BROWN, GREEN, PURPLE, YOURS, Graph, Info, Link, opened
from trainer.config.presets import PRESETS

SIDE = 512
INSTRUCTION = "make it a pencil drawing"
NOTE = """## An edit, learned from pairs

1. Choose the model files in **1 Model**; ComfyUI offers the download of those that are missing.
2. Put 20-50 pictures as they shall come out into **ComfyUI/input/my_edits**, each beside a text file of the same name
   with the instruction ({instruction}), and what they are made from, with the same names, into **my_edits_before**.
3. Press **Run**.
4. At the end your picture in step 4 is edited without the LoRA and with it.

{more}"""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One model that edits, and how ComfyUI gives it the picture before."""

    title: str
    """The file's name."""

    more: str
    """What is particular about it, for the note."""

    loaders: Callable[[Graph], tuple[Link, Link, Link]]
    """Adds the nodes of step 1; model, text encoder, VAE."""

    prefix: str
    """Of the saved LoRA."""

    condition: Callable[[Graph, str, Link, Link, Any, Link, Link], Link]
    """Adds what makes a conditioning: graph, name, text encoder, VAE, instruction, picture, its latent."""

    guidance: float | None
    """For a model that has learned guided predictions; None: guided by the negative prompt, at `cfg`."""

    cfg: float = 1.0
    shift: float | None = None
    """Of ModelSamplingAuraFlow, on the model that is sampled with."""


def _with_reference(
    graph: Graph, name: str, clip: Link, vae: Link, text: Any, picture: Link, latent: Link
) -> Link:
    """The text alone, and the picture as a reference latent."""
    graph.add(f"{name} text", "CLIPTextEncode", color=_yours(text), title=name, clip=clip, text=text)
    graph.add(name, "ReferenceLatent", conditioning=(f"{name} text", 0), latent=latent)
    return (name, 0)


def _seen_by_text_encoder(
    graph: Graph, name: str, clip: Link, vae: Link, text: Any, picture: Link, latent: Link
) -> Link:
    """The text encoder looks at the picture, too; the node makes the reference latent itself."""
    kind = "TextEncodeQwenImageEditPlus"
    graph.add(
        name, kind, tall=200, color=_yours(text), title=name, clip=clip, vae=vae, image1=picture, prompt=text
    )
    return (name, 0)


def _yours(text: Any) -> Any:
    return YOURS if isinstance(text, str) and text else None


KONTEXT = Edit(
    title="Flux Kontext - an edit from pairs",
    more="The picture before is given to the model as a reference latent. Flux 2 and Omnigen2 learn in the same way. "
    "Flux Kontext has 12 billion parameters; its file is in fp8, 12 GB.",
    loaders=flux(files.FLUX_KONTEXT, files.FLUX_T5_FP8),
    prefix="kiln/kontext_edit",
    condition=_with_reference,
    guidance=2.5,
)
QWEN = Edit(
    title="Qwen-Image-Edit - an edit from pairs",
    more="The text encoder looks at the picture before, and it is a reference latent too. Qwen-Image-Edit 2509 has 20 "
    "billion parameters; its file is in fp8, 20 GB.",
    loaders=separate(files.QWEN_EDIT, files.QWEN_TEXT, "qwen_image", files.QWEN_VAE),
    prefix="kiln/qwen_edit",
    condition=_seen_by_text_encoder,
    guidance=None,
    cfg=2.5,
    shift=3.0,
)
EDITS = (KONTEXT, QWEN)


def edit_template(info: Info, edit: Edit) -> Graph:
    """Two folders -> a LoRA, and a picture edited with it."""
    graph = opened(info, NOTE.format(instruction=INSTRUCTION, more=edit.more), 480)
    graph.step("1 Model", BLUE)
    graph.column(340)
    model, clip, vae = edit.loaders(graph)
    graph.step("2 Pictures", GREEN)
    encoded = _pairs(graph, clip, vae)
    chosen: dict[str, Any] = {"preset": "edit from pairs", **PRESETS["edit from pairs"]}
    graph.step("3 Train", BROWN)
    graph.column(360)
    graph.add("memory", "KilnMemorySettings", level="auto")
    graph.column(400)
    graph.add(
        "train", "KilnTrainLora", tall=830, model=model, encoded=encoded, settings=("memory", 0), **chosen
    )
    graph.step("4 Use", PURPLE)
    graph.column(360)
    graph.add("lora", "KilnSaveLora", lora=("train", 0), filename_prefix=edit.prefix)
    graph.add("plot", "KilnLossPlot", tall=300, run=("train", 3))
    graph.add("apply", "KilnApplyLora", model=model, lora=("train", 0), strength=1.0)
    _edited(graph, edit, model, clip, vae)
    return graph


def _pairs(graph: Graph, clip: Link, vae: Link) -> Link:
    """The two folders as an encoded dataset."""
    graph.column(360)
    graph.add("pairs", "KilnLoadDataset", color=YOURS, folder="my_edits", control_folders="my_edits_before")
    graph.add("encoded", "KilnEncodeDataset", dataset=("pairs", 0), vae=vae, clip=clip, resolution=SIDE)
    return ("encoded", 0)


def _edited(graph: Graph, edit: Edit, model: Link, clip: Link, vae: Link) -> None:
    """One picture, edited without and with the LoRA."""
    graph.column(340)
    graph.add("picture", "LoadImage", tall=340, color=YOURS, image="example.png")
    graph.add("scaled", "FluxKontextImageScale", image=("picture", 0))
    graph.add("latent", "VAEEncode", pixels=("scaled", 0), vae=vae)
    graph.column(340)
    given = (clip, vae, INSTRUCTION, ("scaled", 0), ("latent", 0))
    positive = edit.condition(graph, "instruction", *given)
    if edit.guidance is None:
        negative = edit.condition(graph, "negative", clip, vae, "", ("scaled", 0), ("latent", 0))
    else:
        graph.add("guided", "FluxGuidance", conditioning=positive, guidance=edit.guidance)
        graph.add("negative", "ConditioningZeroOut", conditioning=("instruction text", 0))
        positive, negative = ("guided", 0), ("negative", 0)
    models = {"without LoRA": model, "with LoRA": ("apply", 0)}
    if edit.shift is not None:
        for name, link in models.items():
            kind, title = "ModelSamplingAuraFlow", f"shift: {name}"
            graph.add(f"{name} shift", kind, title=title, model=link, shift=edit.shift)
            models[name] = (f"{name} shift", 0)
    graph.column(340)
    for name, link in models.items():
        graph.add(
            f"{name} sampler",
            "KSampler",
            title=f"edit: {name}",
            model=link,
            positive=positive,
            negative=negative,
            latent_image=("latent", 0),
            seed=1,
            steps=20,
            cfg=edit.cfg,
            sampler_name="euler",
            scheduler="simple",
        )
        graph.add(f"{name} decode", "VAEDecode", samples=(f"{name} sampler", 0), vae=vae)
    graph.column(420)
    for name in models:
        show(graph, name, video=False, fps=1)
