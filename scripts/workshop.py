"""Workflows about a dataset alone: from a folder to a report and to encoded items; and captions by a model.

`python -m scripts.workflows URL` builds them with the others.
"""

from __future__ import annotations

from scripts import model_downloads as files
from scripts.training_templates import TRIGGER
from scripts.workflow_graph import BLUE, BROWN, GREEN, PURPLE, YOURS, Graph, Info, opened

TEMPLATE = (
    "{subject} {action}, {art_style} style, {lighting}, {composition}, detailed {texture}, "
    "color scheme: {colors}"
)
VALUES = """subject: cyberpunk girl
action: standing in a neon street
art_style: futurist
lighting: neon light and fog | soft daylight
composition: centred composition
texture:
colors:"""
NOTE = """## The dataset workshop

From a folder to a report and to encoded items, without training.

1. Put images or clips with captions into **ComfyUI/input/my_dataset**: photo.txt for the caption, photo.json for fields
   such as lighting or texture. What an image says of itself wins over the values on the template.
2. Press **Run** and read the report: it says what is wrong and what to do next. Red frames: worth leaving out.
3. Mend, run again. Only what has changed is encoded again.
4. Connect **encoded** to Train LoRA.

Flip mirrors the picture: set horizontal_flip to 0 for faces, writing, and captions that say left or right."""


def workshop(info: Info) -> Graph:
    """Folder -> captions -> augmentation -> report and encoded items."""
    graph = opened(info, NOTE, 460)
    graph.step("1 Pictures", GREEN)
    graph.column(360)
    graph.add("dataset", "KilnLoadDataset", color=YOURS, folder="my_dataset", on_bad_file="skip")
    graph.add(
        "captions",
        "KilnCaptionTemplate",
        tall=420,
        color=YOURS,
        dataset=("dataset", 0),
        template=TEMPLATE,
        values=VALUES,
        trigger_word=TRIGGER,
    )
    graph.step("2 Variants", BROWN)
    graph.column(340)
    graph.add("forms", "KilnCaptionAugment", tall=250, dataset=("captions", 0))
    graph.add("variants", "KilnAugmentDataset", tall=560, dataset=("forms", 0))
    graph.step("3 Encoded", BLUE)
    graph.column(360)
    vae, clip = files.WAN_VAE, files.WAN_TEXT
    graph.add("vae", "VAELoader", models=[vae], vae_name=vae.name)
    graph.add("clip", "CLIPLoader", models=[clip], clip_name=clip.name, type="wan", device="default")
    graph.add("encoded", "KilnEncodeDataset", dataset=("variants", 0), vae=("vae", 0), clip=("clip", 0))
    graph.step("4 Report", PURPLE)
    graph.column(620)
    graph.add("report", "KilnDatasetReport", tall=640, dataset=("captions", 0))
    graph.add("words", "PreviewAny", tall=300, source=("report", 0))
    graph.column(760)
    graph.add("sheet", "PreviewImage", tall=640, images=("report", 1))
    return graph


CAPTIONING_NOTE = """## Caption a dataset

A text encoder that looks at pictures writes a caption beside every picture and clip that has none. Needs ComfyUI 0.33
or newer.

1. Put pictures into **ComfyUI/input/my_dataset**, or drop them on Load Dataset.
2. Choose a ready instruction on **Caption Dataset** and edit it. Write your trigger word.
3. Press **Run**; stop and run again as you like. **Open dataset** shows what is *by model*; mend it there.

The report says what is still worth mending."""


def captioning(info: Info) -> Graph:
    """Folder -> captions by a model -> report."""
    graph = opened(info, CAPTIONING_NOTE, 400)
    graph.step("1 Pictures and model", GREEN)
    graph.column(360)
    graph.add("dataset", "KilnLoadDataset", color=YOURS, folder="my_dataset", on_bad_file="skip")
    model = files.QWEN3_VL
    graph.add(
        "clip", "CLIPLoader", models=[model], clip_name=model.name, type="stable_diffusion", device="default"
    )
    graph.step("2 Captions", BROWN)
    graph.column(420)
    graph.add(
        "captions",
        "KilnCaptionDataset",
        tall=900,
        color=YOURS,
        dataset=("dataset", 0),
        clip=("clip", 0),
        trigger_word=TRIGGER,
    )
    graph.step("3 Report", PURPLE)
    graph.column(620)
    graph.add("report", "KilnDatasetReport", tall=640, dataset=("captions", 0))
    graph.add("words", "PreviewAny", tall=300, source=("report", 0))
    return graph
