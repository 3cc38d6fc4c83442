"""The dataset workshop: a workflow from a folder to a report and to encoded items, ready for training.

`python -m scripts.workflows URL` builds it with the others.
"""

from __future__ import annotations

from scripts.workflow_graph import WAN_FILES, Graph, Info

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
    graph = Graph(info)
    graph.add("dataset", "KilnLoadDataset", (0, 0), (360, 290), folder="my_dataset", on_bad_file="skip")
    graph.add(
        "captions",
        "KilnCaptionTemplate",
        (0, 350),
        (360, 460),
        dataset=("dataset", 0),
        template=TEMPLATE,
        values=VALUES,
        trigger_word="k1ln",
    )
    graph.add("forms", "KilnCaptionAugment", (420, 0), (340, 250), dataset=("captions", 0))
    graph.add("variants", "KilnAugmentDataset", (420, 310), (340, 560), dataset=("forms", 0))
    graph.add("vae", "VAELoader", (820, 0), (360, 70), vae_name=WAN_FILES["vae"])
    graph.add(
        "clip",
        "CLIPLoader",
        (820, 120),
        (360, 110),
        clip_name=WAN_FILES["clip"],
        type="wan",
        device="default",
    )
    graph.add(
        "encoded",
        "KilnEncodeDataset",
        (820, 290),
        (360, 320),
        dataset=("variants", 0),
        vae=("vae", 0),
        clip=("clip", 0),
    )
    graph.add("report", "KilnDatasetReport", (1240, 0), (620, 640), dataset=("captions", 0))
    graph.add("words", "PreviewAny", (1240, 700), (620, 300), source=("report", 0))
    graph.add("sheet", "PreviewImage", (1920, 0), (760, 640), images=("report", 1))
    graph.note((0, -330), (760, 290), NOTE)
    return graph
