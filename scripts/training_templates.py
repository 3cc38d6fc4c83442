"""One training template for each story, a model on a card with an aim, from a table; workflows.py writes the files.

All have the same steps: 1 Model, 2 Pictures, 3 Train, 4 Use. The name of a file is its title in the host's template
browser, which shows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts import model_downloads as files
from scripts.workflow_graph import BLUE, BROWN, GREEN, PURPLE, YOURS, Graph, Info, Link, opened
from trainer.config.presets import PRESETS

TRIGGER = "k1ln"
PROMPT = f"{TRIGGER}, a lighthouse on a cliff at sunrise"
NEGATIVE = "blurry, low quality"
HOW_TO = """1. Choose the model files in **1 Model**; ComfyUI offers the download of those that are missing.
2. Put {what} into **ComfyUI/input/my_dataset**, each beside a text file of the same name that says what it shows
   (photo.png and photo.txt).
3. Press **Run**. The training node says how much memory it needs, then shows loss and time left.
{after}
Green nodes are yours to set: the folder and a trigger word that means nothing yet. It comes first in each of your own
captions (**{{caption}}**).

{more}"""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What one template trains, and on what."""

    title: str
    """The file's name."""

    heading: str
    """Of the note."""

    more: str
    """What is particular about it, for the note."""

    loaders: Callable[[Graph], tuple[Link, Link, Link]]
    """Adds the nodes of step 1; model, text encoder, VAE."""

    prefix: str
    """Of the saved LoRA."""

    preset: str = "standard"
    class_word: str = ""
    """What the trigger word is one of, where the model is to stay as it was for it."""

    resolution: int = 512
    more_resolutions: str = ""
    """Sizes beside it."""

    clips: int = 1
    """Most frames of an item; 1 for pictures."""

    fps: float = 16.0
    memory: Mapping[str, Any] | None = None
    """Values on Memory Settings; no such node when None."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Values on KSampler and on Sample Settings."""

    size: int = 512
    """Width and height of samples."""

    latent: str = "EmptySD3LatentImage"
    shift: tuple[str, float] | None = None
    """Node that sets the shift of the model that is sampled with, and the shift."""

    guidance: float | None = None
    """For models that have learned guided predictions: there is no negative prompt then."""

    text: bool = False
    """The text encoder is trained too."""

    starter: bool = False
    """Without samples, and without step 4's pictures."""


def wan(model: files.ModelFile) -> Callable[[Graph], tuple[Link, Link, Link]]:
    """Loaders of Wan 2.1."""
    return separate(model, files.WAN_TEXT, "wan", files.WAN_VAE)


def separate(
    model: files.ModelFile, text: files.ModelFile, kind: str, vae: files.ModelFile
) -> Callable[[Graph], tuple[Link, Link, Link]]:
    """Loaders of a model in three files."""

    def add(graph: Graph) -> tuple[Link, Link, Link]:
        unet(graph, model)
        graph.add(
            "clip", "CLIPLoader", models=[text], clip_name=text.name, type=kind, device="default", title=TEXT
        )
        graph.add("vae", "VAELoader", models=[vae], vae_name=vae.name, title="VAE")
        return ("model", 0), ("clip", 0), ("vae", 0)

    return add


def flux(
    model: files.ModelFile = files.FLUX_DEV, t5: files.ModelFile = files.FLUX_T5
) -> Callable[[Graph], tuple[Link, Link, Link]]:
    """Loaders of Flux, which has two text encoders."""

    def add(graph: Graph) -> tuple[Link, Link, Link]:
        unet(graph, model)
        graph.add(
            "clip",
            "DualCLIPLoader",
            models=[files.FLUX_CLIP, t5],
            clip_name1=files.FLUX_CLIP.name,
            clip_name2=t5.name,
            type="flux",
            device="default",
            title="text encoders",
        )
        graph.add("vae", "VAELoader", models=[files.FLUX_VAE], vae_name=files.FLUX_VAE.name, title="VAE")
        return ("model", 0), ("clip", 0), ("vae", 0)

    return add


def sdxl(graph: Graph) -> tuple[Link, Link, Link]:
    """One file with everything."""
    _checkpoint(graph, files.SDXL)
    return ("model", 0), ("model", 1), ("model", 2)


def ltx(graph: Graph) -> tuple[Link, Link, Link]:
    """Model and VAE in one file, the text encoder in another."""
    _checkpoint(graph, files.LTX_VIDEO)
    text = files.FLUX_T5
    graph.add(
        "clip", "CLIPLoader", models=[text], clip_name=text.name, type="ltxv", device="default", title=TEXT
    )
    return ("model", 0), ("clip", 0), ("model", 2)


TEXT = "text encoder"


def unet(graph: Graph, model: files.ModelFile, name: str = "model") -> None:
    """A diffusion model's loader, called `name`."""
    graph.add(name, "UNETLoader", models=[model], unet_name=model.name, weight_dtype="default", title=name)


def _checkpoint(graph: Graph, model: files.ModelFile) -> None:
    graph.add("model", "CheckpointLoaderSimple", models=[model], ckpt_name=model.name, title="model")


_WAN_SAMPLING = {"steps": 30, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple"}
_EXPECT = "Use the LoRA at 0.5-0.9."
_STYLE = "The preset *style* learns a way of drawing and leaves the subjects alone: 20-100 pictures of many subjects."
_FAMILY = "The preset is the one for this model family; fewer pictures want fewer steps."
_STANDARD = "The preset *standard* is for 50-100 pictures; with 15-20 choose *quick trial* (500 steps)."

STORIES = (
    Story(
        title="1 Wan 2.1 - first LoRA, starter",
        heading="Your first LoRA",
        more=f"The preset *quick trial* is set: 500 steps at rank 32, 15-20 pictures are enough. {_EXPECT} The "
        "template *Compare strengths* draws with it.",
        loaders=wan(files.WAN_1_3B),
        prefix="kiln/wan21_first",
        preset="quick trial",
        latent="EmptyHunyuanLatentVideo",
        starter=True,
    ),
    Story(
        title="2 Wan 2.1 1.3B - pictures, with samples",
        heading="A Wan 2.1 LoRA on pictures",
        more=f"{_STANDARD} {_EXPECT}",
        loaders=wan(files.WAN_1_3B),
        prefix="kiln/wan21_lora",
        latent="EmptyHunyuanLatentVideo",
        sampling=_WAN_SAMPLING,
    ),
    Story(
        title="3 Wan 2.1 1.3B - style on a 12 GB card",
        heading="A style on a card with 12 GB",
        more=f"{_STYLE} Memory Settings stands at *auto*: it takes the fastest level that fits into what is free."
        f" Should the card be full, set *base_precision* to fp8 or *resolution* to 384. {_EXPECT}",
        loaders=wan(files.WAN_1_3B),
        prefix="kiln/wan21_style",
        preset="style",
        memory={"level": "auto"},
        latent="EmptyHunyuanLatentVideo",
        sampling=_WAN_SAMPLING,
    ),
    Story(
        title="4 Wan 2.1 14B - pictures on a 24 GB card",
        heading="Wan 2.1 14B on a card with 24 GB",
        more="The model's file is in fp8. By the node's estimate a picture of 512 pixels takes 19 GB with the "
        "whole model on the card, and 7 GB with its blocks in CPU memory, from where they come two at a time "
        f"(32 GB of RAM): *auto* takes what fits. {_STANDARD} {_EXPECT}",
        loaders=wan(files.WAN_14B),
        prefix="kiln/wan21_14b",
        memory={"level": "auto"},
        latent="EmptyHunyuanLatentVideo",
        sampling=_WAN_SAMPLING,
    ),
    Story(
        title="5 Wan 2.1 1.3B - motion from clips",
        heading="A motion from short clips",
        more="Put 10-30 clips of 2-5 s in; each gives up to 33 frames at 16 a second. Pictures may lie among "
        "them. Describe the motion in the caption. Videos need several times the memory and time of "
        f"pictures. {_EXPECT}",
        loaders=wan(files.WAN_1_3B),
        prefix="kiln/wan21_motion",
        resolution=320,
        clips=33,
        memory={"level": "auto"},
        latent="EmptyHunyuanLatentVideo",
        sampling=_WAN_SAMPLING,
        size=320,
    ),
    Story(
        title="Wan 2.1 1.3B - a character, its class kept",
        heading="A character, and everybody else as before",
        more="The preset *character* is set: about 50 pictures in one style, from several sides. *class_word* on "
        "Caption Template says what the character is one of; write your own (woman, man, dog). Every step then also "
        "keeps what the model drew for that class, which makes it 2 to 2.5 times as long. Draw the class, "
        f"too, to see it. {_EXPECT}",
        loaders=wan(files.WAN_1_3B),
        prefix="kiln/wan21_character",
        preset="character",
        class_word="woman",
        latent="EmptyHunyuanLatentVideo",
        sampling=_WAN_SAMPLING,
    ),
    Story(
        title="SDXL - pictures",
        heading="An SDXL LoRA",
        more=f"Trained at 1024 pixels, the size that SDXL knows. {_FAMILY} {_EXPECT}",
        preset="SDXL",
        loaders=sdxl,
        prefix="kiln/sdxl_lora",
        resolution=1024,
        latent="EmptyLatentImage",
        sampling={"steps": 25, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal"},
        size=1024,
    ),
    Story(
        title="SDXL - a new word, with CLIP",
        heading="An SDXL LoRA with its text encoders",
        more="CLIP is connected to the training node, so the LoRA has layers of both text encoders: 5e-5 for them, "
        "1e-4 for the model. That pays where the trigger word or the tags mean nothing to CLIP; a style does without. "
        "The text encoders take 1.6 GB more of the card (fp16), and captions are encoded in every step. When you use "
        f"the LoRA, put it on CLIP as well: here **Apply LoRA** does so for the prompt. {_EXPECT}",
        preset="SDXL",
        loaders=sdxl,
        prefix="kiln/sdxl_word",
        resolution=1024,
        latent="EmptyLatentImage",
        sampling={"steps": 25, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal"},
        size=1024,
        text=True,
    ),
    Story(
        title="Flux dev - pictures",
        heading="A Flux dev LoRA",
        more=f"The model has 12 billion parameters: 24 GB in bf16, half with *base_precision* fp8. {_FAMILY} "
        f"{_EXPECT} Its licence rules what you may do with the LoRA.",
        preset="Flux",
        loaders=flux(),
        prefix="kiln/flux_lora",
        memory={"level": "auto", "base_precision": "fp8"},
        sampling={"steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"},
        size=768,
        resolution=768,
        guidance=3.5,
    ),
    Story(
        title="Flux dev - pictures at several sizes",
        heading="A Flux dev LoRA for several sizes",
        more="*resolution* and *more_resolutions* on Encode Dataset: every picture is trained at 512, 768 and 1024 "
        "pixels, each at the sizes that it fills (the sizes of ai-toolkit's examples for Flux). Take it when the LoRA "
        "is to draw at more than one size; for one size, train at that one: an epoch has up to three times the steps, "
        "and the largest size says how much memory is needed. The node's text says how many pictures each size has. "
        f"{_FAMILY} {_EXPECT}",
        preset="Flux",
        loaders=flux(),
        prefix="kiln/flux_sizes",
        memory={"level": "auto", "base_precision": "fp8"},
        sampling={"steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"},
        size=768,
        more_resolutions="768, 1024",
        guidance=3.5,
    ),
    Story(
        title="Qwen-Image - pictures",
        heading="A Qwen-Image LoRA",
        more="The model has 20 billion parameters; its file is in fp8, 20 GB. *auto* streams its blocks from CPU"
        f" memory where the card is smaller. {_FAMILY} {_EXPECT}",
        preset="Qwen-Image",
        loaders=separate(files.QWEN_IMAGE, files.QWEN_TEXT, "qwen_image", files.QWEN_VAE),
        prefix="kiln/qwen_image_lora",
        memory={"level": "auto"},
        sampling={"steps": 20, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple"},
        size=768,
        resolution=768,
        shift=("ModelSamplingAuraFlow", 3.1),
    ),
    Story(
        title="Z-Image - pictures",
        heading="A Z-Image LoRA",
        more="Trained on the base model and not on the distilled *turbo*, which would unlearn to draw in few "
        f"steps. {_FAMILY} {_EXPECT}",
        preset="Z-Image",
        loaders=separate(files.Z_IMAGE, files.Z_IMAGE_TEXT, "lumina2", files.Z_IMAGE_VAE),
        prefix="kiln/z_image_lora",
        memory={"level": "auto"},
        sampling={"steps": 25, "cfg": 4.0, "sampler_name": "res_multistep", "scheduler": "simple"},
        size=768,
        resolution=768,
        shift=("ModelSamplingAuraFlow", 3.0),
    ),
    Story(
        title="LTX-Video - clips",
        heading="An LTX-Video LoRA",
        more="Put 10-30 clips of 1-4 s in; each gives up to 25 frames at 25 a second. LTX-Video wants long "
        f"captions that tell what happens in order. {_EXPECT}",
        preset="LTX-Video",
        loaders=ltx,
        prefix="kiln/ltx_video_lora",
        resolution=512,
        clips=25,
        fps=25.0,
        memory={"level": "auto"},
        latent="EmptyLTXVLatentVideo",
        sampling={"steps": 30, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"},
    ),
)


def training_template(info: Info, story: Story) -> Graph:
    """The workflow of a story."""
    graph = opened(info, _note(story), 420)
    graph.step("1 Model", BLUE)
    graph.column(340)
    model, clip, vae = story.loaders(graph)
    graph.step("2 Pictures" if story.clips == 1 else "2 Clips", GREEN)
    graph.column(360)
    more = {"more_resolutions": story.more_resolutions} if story.more_resolutions else {}
    encoded = pictures(graph, clip, vae, story.resolution, story.clips, story.fps, story.class_word, **more)
    graph.step("3 Train", BROWN)
    graph.column(360)
    settings = _settings(graph, story, clip, vae)
    if settings is not None:
        graph.column(400)
    chosen: dict[str, Any] = {"preset": story.preset, **PRESETS[story.preset]}
    if story.text:
        chosen["clip"] = clip
    graph.add("train", "KilnTrainLora", tall=830, model=model, encoded=encoded, settings=settings, **chosen)
    graph.step("4 Use", PURPLE)
    graph.column(360)
    graph.add("lora", "KilnSaveLora", lora=("train", 0), filename_prefix=story.prefix)
    if not story.starter:
        graph.add("plot", "KilnLossPlot", tall=300, run=("train", 3))
        _use(graph, story, model, clip, vae)
    return graph


def _note(story: Story) -> str:
    video = story.clips > 1
    after = "" if story.starter else "4. At the end the same prompt is drawn without the LoRA and with it.\n"
    what = "10-30 clips" if video else ("15-20 pictures" if story.starter else "20-100 pictures")
    return f"## {story.heading}\n\n" + HOW_TO.format(what=what, after=after, more=story.more)


def pictures(
    graph: Graph,
    clip: Link,
    vae: Link,
    resolution: int,
    clips: int = 1,
    fps: float = Story.fps,
    class_word: str = "",
    **encoding: Any,
) -> Link:
    """The nodes of step 2, from the user's folder to the encoded dataset; the last four arguments are a Story's, and
    further ones values on Encode Dataset."""
    graph.add("dataset", "KilnLoadDataset", color=YOURS, folder="my_dataset")
    graph.add(
        "captions",
        "KilnCaptionTemplate",
        tall=360,
        color=YOURS,
        dataset=("dataset", 0),
        template="{caption}",
        trigger_word=TRIGGER,
        class_word=class_word,
    )
    graph.add(
        "encoded",
        "KilnEncodeDataset",
        dataset=("captions", 0),
        vae=vae,
        clip=clip,
        resolution=resolution,
        max_frames=max(clips, 33),
        fps=fps,
        **encoding,
    )
    return ("encoded", 0)


def _settings(graph: Graph, story: Story, clip: Link, vae: Link) -> Link | None:
    """The settings nodes; the last of the chain."""
    settings: Link | None = None
    if story.memory is not None:
        graph.add("memory", "KilnMemorySettings", **story.memory)
        settings = ("memory", 0)
    if not story.starter:
        sampling = {k: v for k, v in story.sampling.items() if k != "steps"}
        graph.add(
            "samples",
            "KilnSampleSettings",
            tall=560,
            color=YOURS,
            clip=clip,
            vae=vae,
            settings=settings,
            prompts=PROMPT,
            negative_prompt="" if story.guidance else NEGATIVE,
            width=story.size,
            height=story.size,
            length=story.clips,
            fps=story.fps,
            **sampling,
        )
        settings = ("samples", 0)
    return settings


def _use(graph: Graph, story: Story, model: Link, clip: Link, vae: Link) -> None:
    """The same prompt without and with the LoRA."""
    on_clip: dict[str, Any] = {"clip": clip, "strength_clip": 0.8} if story.text else {}
    graph.add("apply", "KilnApplyLora", model=model, lora=("train", 0), strength=0.8, **on_clip)
    graph.column(340)
    graph.add("positive", "CLIPTextEncode", tall=130, color=YOURS, title="prompt", clip=clip, text=PROMPT)
    positive: Link = ("positive", 0)
    if story.guidance:
        graph.add("guided", "FluxGuidance", conditioning=positive, guidance=story.guidance)
        graph.add("negative", "ConditioningZeroOut", conditioning=positive)
        positive = ("guided", 0)
    else:
        graph.add("negative", "CLIPTextEncode", tall=100, title="negative prompt", clip=clip, text=NEGATIVE)
    negative: Link = ("negative", 0)
    if story.latent == "EmptyLTXVLatentVideo":
        graph.add("rate", "LTXVConditioning", positive=positive, negative=negative, frame_rate=story.fps)
        positive, negative = ("rate", 0), ("rate", 1)
    length: dict[str, Any] = {"length": story.clips} if "Video" in story.latent else {}
    graph.add("empty", story.latent, width=story.size, height=story.size, batch_size=1, **length)
    models = {"without LoRA": model, "with LoRA at 0.8": ("apply", 0)}
    if story.shift:
        kind, shift = story.shift
        for name, link in models.items():
            graph.add(f"{name} shift", kind, title=f"shift: {name}", model=link, shift=shift)
            models[name] = (f"{name} shift", 0)
    given: dict[str, Any] = {
        "positive": positive,
        "negative": negative,
        "latent_image": ("empty", 0),
        "seed": 1,
    }
    if story.text:
        graph.add(
            "positive with",
            "CLIPTextEncode",
            tall=130,
            color=YOURS,
            title="prompt, with LoRA",
            clip=("apply", 1),
            text=PROMPT,
        )
    graph.column(340)
    for name, link in models.items():
        own = {"positive": ("positive with", 0)} if story.text and name.startswith("with LoRA") else {}
        graph.add(
            f"{name} sampler",
            "KSampler",
            title=f"sample: {name}",
            model=link,
            **{**given, **own},
            **story.sampling,
        )
        graph.add(f"{name} decode", "VAEDecode", samples=(f"{name} sampler", 0), vae=vae)
    graph.column(420)
    for name in models:
        show(graph, name, story.clips > 1, story.fps)


def show(graph: Graph, name: str, video: bool, fps: float) -> None:
    """What the decoder of that name gives, saved: a picture or a video."""
    saved = f"kiln/{name.replace(' ', '_').replace('.', '_')}"
    decoded = (f"{name} decode", 0)
    if video:
        graph.add(f"{name} video", "CreateVideo", images=decoded, fps=fps)
        graph.add(
            f"{name} save",
            "SaveVideo",
            tall=330,
            title=name,
            video=(f"{name} video", 0),
            filename_prefix=saved,
        )
    else:
        graph.add(f"{name} save", "SaveImage", tall=420, title=name, images=decoded, filename_prefix=saved)
