"""Workflow files: build them, and turn them into prompts for the server.

    python -m scripts.workflows URL        rebuilds every workflow file, with the node definitions of a running server

A workflow file is what the canvas saves: nodes with places, and widget values by position. The server wants prompts:
inputs by name. The canvas does that step for a user; `to_prompt` does it for the demo and the tests. Building the
files from code keeps them true to the nodes: an input that is renamed or missing fails here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.host_client import HostClient
from scripts.host_files import REPO

Info = dict[str, Any]  # /object_info: node class -> definition
Link = tuple[str, int]  # name of a node in the builder, output slot

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# Inputs whose widget is followed by a second one, "control after generate", in the saved values
CONTROLLED = ("seed", "noise_seed")


def is_widget(spec: list[Any]) -> bool:
    """Whether an input is a value on the node rather than a socket."""
    kind = spec[0]
    options = spec[1] if len(spec) > 1 else {}
    return isinstance(kind, list) or (kind in WIDGET_TYPES and not options.get("forceInput"))


def has_control(name: str, spec: list[Any]) -> bool:
    """Whether the canvas adds a "control after generate" widget behind this input."""
    options = spec[1] if len(spec) > 1 else {}
    chosen = options.get("control_after_generate")
    return spec[0] == "INT" and (chosen is True or (chosen is None and name in CONTROLLED))


def inputs_of(info: Info, kind: str) -> dict[str, list[Any]]:
    """A node's inputs in order, required ones first."""
    definition = info[kind]["input"]
    return {**definition.get("required", {}), **definition.get("optional", {})}


def default_of(spec: list[Any]) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    return choices[0] if choices else ""


class Graph:
    """Collects nodes and writes them as a workflow file."""

    def __init__(self, info: Info) -> None:
        self._info = info
        self._nodes: dict[str, dict[str, Any]] = {}
        self._links: list[list[Any]] = []
        self._groups: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        kind: str,
        place: tuple[int, int],
        size: tuple[int, int] = (300, 130),
        title: str | None = None,
        **inputs: Any,
    ) -> None:
        """One node.

        Args:
            name: how later nodes refer to it.
            kind: node class.
            place, size: on the canvas, pixels.
            title: shown instead of the class's display name.
            inputs: values, or ("node name", slot) for a connection.
        """
        specs = inputs_of(self._info, kind)
        unknown = set(inputs) - set(specs)
        if unknown:
            raise KeyError(f"{kind} has no input {sorted(unknown)}; it has {list(specs)}.")
        number = len(self._nodes) + 1
        node: dict[str, Any] = {
            "id": number,
            "type": kind,
            "pos": list(place),
            "size": list(size),
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "inputs": [],
            "outputs": [
                {"name": n, "type": t, "links": []}
                for n, t in zip(self._info[kind]["output_name"], self._info[kind]["output"], strict=True)
            ],
            "properties": {"Node name for S&R": kind},
            "widgets_values": [],
        }
        if title:
            node["title"] = title
        for key, spec in specs.items():
            if is_widget(spec):
                node["widgets_values"].append(inputs.get(key, default_of(spec)))
                if has_control(key, spec):
                    node["widgets_values"].append("fixed")
                continue
            node["inputs"].append(
                {"name": key, "type": spec[0], "link": self._connect(inputs.get(key), node, spec[0])}
            )
        self._nodes[name] = node

    def _connect(self, source: Link | None, node: dict[str, Any], kind: str) -> int | None:
        if source is None:
            return None
        origin, slot = self._nodes[source[0]], source[1]
        link = len(self._links) + 1
        self._links.append([link, origin["id"], slot, node["id"], len(node["inputs"]), kind])
        origin["outputs"][slot]["links"].append(link)
        return link

    def note(self, place: tuple[int, int], size: tuple[int, int], text: str) -> None:
        """A Markdown note on the canvas; it exists for the reader only."""
        number = len(self._nodes) + 1
        self._nodes[f"note {number}"] = {
            "id": number,
            "type": "MarkdownNote",
            "pos": list(place),
            "size": list(size),
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [text],
            "color": "#432",
            "bgcolor": "#653",
        }

    def group(self, title: str, bounding: tuple[int, int, int, int]) -> None:
        """A titled frame: x, y, width, height."""
        self._groups.append({"title": title, "bounding": list(bounding), "color": "#3f789e", "font_size": 24})

    def save(self, path: Path) -> None:
        workflow = {
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": list(self._nodes.values()),
            "links": self._links,
            "groups": [{"id": i, **g, "flags": {}} for i, g in enumerate(self._groups, 1)],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(workflow, indent=1) + "\n", "utf-8")


def to_prompt(workflow: dict[str, Any], info: Info) -> dict[str, Any]:
    """A workflow as the server wants it. Notes are left out; muted and bypassed nodes are not supported."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in ("MarkdownNote", "Note"):
            continue
        values = iter(node["widgets_values"])
        connected = {i["name"]: i["link"] for i in node["inputs"] if i.get("link") is not None}
        inputs: dict[str, Any] = {}
        for name, spec in inputs_of(info, node["type"]).items():
            if is_widget(spec):
                inputs[name] = next(values)
                if has_control(name, spec):
                    next(values)
            if name in connected:
                inputs[name] = sources[connected[name]]
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title", "")},
        }
    return prompt


def sampled(
    graph: Graph, name: str, model: Link, y: int, x: int, width: int, settings: dict[str, Any]
) -> None:
    """Sampler, decoder and saved image of one model, in a row."""
    graph.add(
        f"{name} sampler", "KSampler", (x, y), (300, 270), title=f"sample: {name}", model=model, **settings
    )
    graph.add(
        f"{name} decode", "VAEDecode", (x + 330, y), (180, 60), samples=(f"{name} sampler", 0), vae=("vae", 0)
    )
    graph.add(
        f"{name} save",
        "SaveImage",
        (x + 540, y),
        (width, 270),
        title=name,
        images=(f"{name} decode", 0),
        filename_prefix=f"kiln/{name.replace(' ', '_').replace('.', '_')}",
    )


def tiny(info: Info) -> Graph:
    """The demo: learn the concept on the tiny Wan, then draw it at rising strengths."""
    graph = Graph(info)
    graph.add(
        "model", "UNETLoader", (0, 0), (320, 90), unet_name="tiny_wan.safetensors", weight_dtype="default"
    )
    graph.add("clip", "TinyWanTextEncoder", (0, 130), (320, 60))
    graph.add("vae", "VAELoader", (0, 230), (320, 70), vae_name="tiny_wan_vae.safetensors")
    graph.add("dataset", "KilnLoadDataset", (0, 350), (320, 270), folder="tiny_concept")
    graph.add("captions", "KilnCaptionTemplate", (0, 680), (320, 370), dataset=("dataset", 0))
    graph.add(
        "encoded",
        "KilnEncodeDataset",
        (380, 560),
        (320, 230),
        dataset=("captions", 0),
        vae=("vae", 0),
        clip=("clip", 0),
        resolution=64,
    )
    graph.add("objective", "KilnObjectiveSettings", (380, 0), (320, 150))
    graph.add("optimizer", "KilnOptimizerSettings", (380, 200), (320, 270), settings=("objective", 0))
    graph.add(
        "train",
        "KilnTrainLora",
        (760, 0),
        (360, 800),
        model=("model", 0),
        encoded=("encoded", 0),
        settings=("optimizer", 0),
        **TINY_TRAINING,
    )
    graph.add(
        "lora", "KilnSaveLora", (760, 850), (360, 150), lora=("train", 0), filename_prefix="kiln/tiny_concept"
    )
    graph.add("plot", "KilnLossPlot", (760, 1050), (360, 260), run=("train", 3))
    graph.add("positive", "CLIPTextEncode", (1180, 0), (320, 110), clip=("clip", 0), text=TINY_PROMPT)
    graph.add("negative", "CLIPTextEncode", (1180, 160), (320, 90), clip=("clip", 0), text="")
    graph.add(
        "empty",
        "EmptyHunyuanLatentVideo",
        (1180, 300),
        (320, 150),
        width=64,
        height=64,
        length=1,
        batch_size=20,
    )
    settings = {
        "positive": ("positive", 0),
        "negative": ("negative", 0),
        "latent_image": ("empty", 0),
        **TINY_SAMPLING,
    }
    sampled(graph, "without", ("model", 0), 0, 1560, 420, settings)
    for row, strength in enumerate((0.5, 0.8, 1.0), 1):
        name = f"strength {strength}"
        graph.add(
            f"apply {strength}",
            "KilnApplyLora",
            (1180, 330 * row + 200),
            (320, 110),
            model=("model", 0),
            lora=("train", 0),
            strength=strength,
        )
        sampled(graph, name, (f"apply {strength}", 0), 330 * row, 1560, 420, settings)
    graph.note((0, -230), (700, 190), TINY_NOTE)
    return graph


def wan(info: Info) -> Graph:
    """The real thing: Wan 2.1 T2V 1.3B on stills, with the guide's settings."""
    graph = Graph(info)
    graph.add("model", "UNETLoader", (0, 0), (360, 90), unet_name=WAN_FILES["model"], weight_dtype="default")
    graph.add(
        "clip", "CLIPLoader", (0, 130), (360, 110), clip_name=WAN_FILES["clip"], type="wan", device="default"
    )
    graph.add("vae", "VAELoader", (0, 280), (360, 70), vae_name=WAN_FILES["vae"])
    graph.add("dataset", "KilnLoadDataset", (0, 400), (360, 270), folder="my_dataset")
    graph.add(
        "captions",
        "KilnCaptionTemplate",
        (0, 730),
        (360, 370),
        dataset=("dataset", 0),
        template="{caption}, {art_style} style, {lighting}",
        values="art_style: futurist\nlighting: neon light and fog | soft daylight",
        trigger_word="k1ln",
    )
    graph.add(
        "encoded",
        "KilnEncodeDataset",
        (420, 600),
        (320, 230),
        dataset=("captions", 0),
        vae=("vae", 0),
        clip=("clip", 0),
        resolution=512,
    )
    graph.add("adapter", "KilnAdapterSettings", (420, 0), (320, 130))
    graph.add("optimizer", "KilnOptimizerSettings", (420, 180), (320, 270), settings=("adapter", 0))
    graph.add(
        "samples",
        "KilnSampleSettings",
        (420, 880),
        (320, 520),
        clip=("clip", 0),
        vae=("vae", 0),
        settings=("optimizer", 0),
        prompts=WAN_PROMPT,
        negative_prompt=WAN_NEGATIVE,
    )
    graph.add(
        "train",
        "KilnTrainLora",
        (800, 0),
        (380, 800),  # with a row of samples
        model=("model", 0),
        encoded=("encoded", 0),
        settings=("samples", 0),
        preset="standard",
    )
    graph.add(
        "lora", "KilnSaveLora", (800, 850), (380, 150), lora=("train", 0), filename_prefix="kiln/wan21_lora"
    )
    graph.add("plot", "KilnLossPlot", (800, 1050), (380, 290), run=("train", 3))
    graph.add(
        "positive",
        "CLIPTextEncode",
        (1240, 0),
        (360, 150),
        clip=("clip", 0),
        text=WAN_PROMPT,
    )
    graph.add("negative", "CLIPTextEncode", (1240, 200), (360, 110), clip=("clip", 0), text=WAN_NEGATIVE)
    graph.add(
        "empty",
        "EmptyHunyuanLatentVideo",
        (1240, 360),
        (360, 150),
        width=512,
        height=512,
        length=1,
        batch_size=1,
    )
    graph.add(
        "apply", "KilnApplyLora", (1240, 560), (360, 110), model=("model", 0), lora=("train", 0), strength=0.8
    )
    settings = {
        "positive": ("positive", 0),
        "negative": ("negative", 0),
        "latent_image": ("empty", 0),
        "seed": 1,
        "steps": 30,
        "cfg": 6.0,
        "sampler_name": "uni_pc",
        "scheduler": "simple",
    }
    sampled(graph, "without LoRA", ("model", 0), 0, 1660, 420, settings)
    sampled(graph, "with LoRA at 0.8", ("apply", 0), 330, 1660, 420, settings)
    graph.note((0, -300), (740, 260), WAN_NOTE)
    return graph


def compare(info: Info) -> Graph:
    """One LoRA at rising strengths, side by side: a sweep feeds one sampler, which runs once per strength."""
    graph = Graph(info)
    graph.add("model", "UNETLoader", (0, 0), (360, 90), unet_name=WAN_FILES["model"], weight_dtype="default")
    graph.add(
        "clip", "CLIPLoader", (0, 130), (360, 110), clip_name=WAN_FILES["clip"], type="wan", device="default"
    )
    graph.add("vae", "VAELoader", (0, 280), (360, 70), vae_name=WAN_FILES["vae"])
    graph.add(
        "lora",
        "KilnLoadLora",
        (0, 390),
        (360, 220),
        lora_name=WAN_LORA,
        model=("model", 0),
        strength=0.0,
    )
    graph.add(
        "sweep",
        "KilnWeightSweep",
        (420, 0),
        (360, 190),
        model=("model", 0),
        lora=("lora", 2),
        strengths="0, 0.5..0.9:0.1",
    )
    graph.add(
        "positive",
        "CLIPTextEncode",
        (420, 240),
        (360, 150),
        clip=("clip", 0),
        text="k1ln, cyberpunk girl standing in a neon street, futurist style, neon light and fog",
    )
    graph.add(
        "negative", "CLIPTextEncode", (420, 430), (360, 110), clip=("clip", 0), text="blurry, low quality"
    )
    graph.add(
        "empty",
        "EmptyHunyuanLatentVideo",
        (420, 580),
        (360, 150),
        width=512,
        height=512,
        length=1,
        batch_size=1,
    )
    graph.add(
        "sampler",
        "KSampler",
        (840, 0),
        (300, 270),
        model=("sweep", 0),
        positive=("positive", 0),
        negative=("negative", 0),
        latent_image=("empty", 0),
        seed=1,
        steps=30,
        cfg=6.0,
        sampler_name="uni_pc",
        scheduler="simple",
    )
    graph.add("decode", "VAEDecode", (840, 320), (300, 60), samples=("sampler", 0), vae=("vae", 0))
    graph.add(
        "grid",
        "KilnComparisonGrid",
        (1200, 0),
        (620, 420),
        images=("decode", 0),
        labels=("sweep", 1),
        columns=3,
    )
    graph.add(
        "save",
        "SaveImage",
        (1200, 470),
        (620, 270),
        images=("grid", 0),
        filename_prefix="kiln/compare_strengths",
    )
    graph.note((0, -260), (740, 220), COMPARE_NOTE)
    return graph


WAN_LORA = "kiln/wan21_lora_00001_.safetensors"  # what the training workflow saves first
WAN_PROMPT = "k1ln, cyberpunk girl standing in a neon street, futurist style, neon light and fog"
WAN_NEGATIVE = "blurry, low quality"
WAN_FILES = {
    "model": "wan2.1_t2v_1.3B_fp16.safetensors",
    "clip": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "vae": "wan_2.1_vae.safetensors",
}
TINY_PROMPT = "a red zorb on a white background"
TINY_TRAINING: dict[str, Any] = {
    "steps": 500,
    "learning_rate": 2e-3,
    "rank": 16,
    "alpha": 16.0,
    "batch_size": 8,
    "seed": 0,
}
TINY_SAMPLING: dict[str, Any] = {
    "seed": 1,
    "steps": 16,
    "cfg": 3.0,
    "sampler_name": "euler",
    "scheduler": "simple",
}
TINY_NOTE = """## LoRA Kiln, the tiny demo

A Wan 2.1 of 5 million parameters that can draw circles, squares and triangles learns a shape it has never seen.
Press **Run**: it trains for about a minute on a CPU and then draws the new shape without the LoRA and at rising
strengths. Nothing is downloaded."""
WAN_NOTE = """## Train a Wan 2.1 LoRA on stills

1. Put 20-100 images with captions (photo.png and photo.txt) into **ComfyUI/input/my_dataset**.
2. Choose a trigger word that means nothing yet, and describe what all images share in the template's values.
3. Press **Run**. The node shows loss, samples and time left; interrupting saves a checkpoint, *resume: latest* goes on.

Start with the preset *quick trial* (500 steps). Use the LoRA at 0.5-0.9. Model files: wan2.1_t2v_1.3B_fp16,
umt5_xxl_fp8_e4m3fn_scaled and wan_2.1_vae, as ComfyUI's own Wan templates use them."""

COMPARE_NOTE = """## Compare strengths

Draws the same picture without your LoRA and at 0.5 to 0.9, and puts the six side by side.

1. Choose your LoRA in **Load LoRA**, and write your trigger word into the prompt.
2. Press **Run**. The sampler runs once for each strength, always with the same seed.

Take the smallest strength that shows what you trained. For videos, raise the length and set the grid's mode
to *video*."""


def main() -> None:
    from scripts.workshop import workshop  # it builds on this module

    info = HostClient(sys.argv[1]).object_info()
    tiny(info).save(REPO / "tests" / "tiny_wan" / "workflows" / "train_then_sample_tiny.json")
    wan(info).save(REPO / "workflows" / "wan21_t2v_lora.json")
    compare(info).save(REPO / "workflows" / "compare_strengths.json")
    workshop(info).save(REPO / "workflows" / "dataset_workshop.json")


if __name__ == "__main__":
    main()
