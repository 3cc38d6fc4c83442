"""The template that trains an image-to-video model on clips, each with its own first frame: Wan 2.2 5B."""

from __future__ import annotations

from typing import Any

from scripts import model_downloads as files
from scripts.training_templates import NEGATIVE, TRIGGER, pictures, separate, show
from scripts.workflow_graph import BLUE, BROWN, GREEN, PURPLE, YOURS, Graph, Info, Link, opened
from trainer.config.presets import PRESETS

TITLE = "Wan 2.2 5B - a picture that moves"
SIDE, FRAMES, FPS, SHIFT = 640, 49, 24.0, 8.0  # as ComfyUI's template for this model, but for size and length
MOTION = f"{TRIGGER}, it turns around slowly"
SAMPLING: dict[str, Any] = {"steps": 20, "cfg": 5.0, "sampler_name": "uni_pc", "scheduler": "simple"}
NOTE = """## A picture that moves

1. Choose the model files in **1 Model**; ComfyUI offers the download of those that are missing.
2. Put 10-30 clips of 2-5 s that show the motion from its beginning into **ComfyUI/input/my_dataset**, each beside a
   text file of the same name that tells the motion (clip.mp4 and clip.txt).
3. Press **Run**. Each clip's own first frame is given to the model (*first_frame* on Encode Dataset), as your picture
   is when you use it.
4. At the end your picture in step 4 is set in motion without the LoRA and with it.

Green nodes are yours to set. The model has 5 billion parameters; its file is in fp16, 10 GB. It also draws without a
picture: *first_frame_dropout* 0.1 trains one sample in ten so. For Wan 2.1 14B and Wan 2.2 14B i2v choose their model
and the VAE of Wan 2.1, set *fps* to 16 and use WanImageToVideo in step 4; Wan 2.1 also wants *clip_vision* on Encode
Dataset, Wan 2.2 14B a training for each expert."""


def first_frame_template(info: Info) -> Graph:
    """Clips -> a LoRA, and a picture set in motion with it."""
    graph = opened(info, NOTE, 520)
    graph.step("1 Model", BLUE)
    graph.column(340)
    model, clip, vae = separate(files.WAN22_5B, files.WAN_TEXT, "wan", files.WAN22_VAE)(graph)
    graph.step("2 Clips", GREEN)
    graph.column(360)
    encoded = pictures(
        graph,
        clip,
        vae,
        SIDE,
        FRAMES,
        FPS,
        clip_part="start",
        first_frame="first frame",
        first_frame_dropout=0.1,
    )
    graph.step("3 Train", BROWN)
    graph.column(360)
    graph.add("memory", "KilnMemorySettings", level="auto")
    graph.column(400)
    chosen: dict[str, Any] = {"preset": "standard", **PRESETS["standard"]}
    graph.add(
        "train", "KilnTrainLora", tall=830, model=model, encoded=encoded, settings=("memory", 0), **chosen
    )
    graph.step("4 Use", PURPLE)
    graph.column(360)
    graph.add("lora", "KilnSaveLora", lora=("train", 0), filename_prefix="kiln/wan22_5b_motion")
    graph.add("plot", "KilnLossPlot", tall=300, run=("train", 3))
    graph.add("apply", "KilnApplyLora", model=model, lora=("train", 0), strength=0.8)
    _moved(graph, model, clip, vae)
    return graph


def _moved(graph: Graph, model: Link, clip: Link, vae: Link) -> None:
    """One picture, set in motion without and with the LoRA."""
    graph.column(340)
    graph.add("picture", "LoadImage", tall=340, color=YOURS, image="example.png")
    graph.add("positive", "CLIPTextEncode", tall=130, color=YOURS, title="prompt", clip=clip, text=MOTION)
    graph.add("negative", "CLIPTextEncode", tall=100, title="negative prompt", clip=clip, text=NEGATIVE)
    graph.add(
        "latent",
        "Wan22ImageToVideoLatent",
        vae=vae,
        start_image=("picture", 0),
        width=SIDE,
        height=SIDE,
        length=FRAMES,
        batch_size=1,
    )
    graph.column(340)
    models: dict[str, Link] = {"without LoRA": model, "with LoRA at 0.8": ("apply", 0)}
    for name, link in models.items():
        graph.add(f"{name} shift", "ModelSamplingSD3", title=f"shift: {name}", model=link, shift=SHIFT)
        graph.add(
            f"{name} sampler",
            "KSampler",
            title=f"sample: {name}",
            model=(f"{name} shift", 0),
            positive=("positive", 0),
            negative=("negative", 0),
            latent_image=("latent", 0),
            seed=1,
            **SAMPLING,
        )
        graph.add(f"{name} decode", "VAEDecode", samples=(f"{name} sampler", 0), vae=vae)
    graph.column(420)
    for name in models:
        show(graph, name, video=True, fps=FPS)
