"""A workflow file as a graph built from code, and as a prompt for the server.

A workflow file is what the canvas saves: nodes with places, and widget values by position. The server wants prompts:
inputs by name. The canvas does that step for a user; `to_prompt` does it for the demo and the tests. Building the
files from code keeps them true to the nodes: an input that is renamed or missing fails here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.model_downloads import ModelFile

Info = dict[str, Any]  # /object_info: node class -> definition
Link = tuple[str, int]  # name of a node in the builder, output slot

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # host 0.33: a choice that brings further inputs
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}
# Inputs whose widget is followed by a second one, "control after generate", in the saved values
CONTROLLED = ("seed", "noise_seed")
# Heights that the frontends draw at least, by node class: the largest of all frontends and both ways of drawing
NODE_SIZES = Path(__file__).with_name("node_sizes.json")
# Nodes that grow, in pixels: by the text that they show when they run, by the host's word on a missing file
GROWS_BY = {
    **dict.fromkeys(
        ("UNETLoader", "CheckpointLoaderSimple", "CLIPLoader", "DualCLIPLoader", "VAELoader"), 40
    ),
    "KilnLoadLora": 40,
    "KilnLoadDataset": 100,
    "KilnCaptionTemplate": 100,
    "KilnEncodeDataset": 120,
    "KilnSaveLora": 60,
    "KilnSliderTargets": 100,
    "KilnTrainLora": 60,
    "KilnLossPlot": 60,
    "SaveImage": 60,
}
# Pixels of the canvas: a node's title, between nodes, inside a frame, a frame's title
TITLE, GAP, PADDING, GROUP_TITLE = 30, 40, 20, 40
# The view in which a workflow opens: scale, and where the first frame's corner is
OPENING_SCALE, OPENING_LEFT, OPENING_TOP = 0.8, 100, 190
# Frames
BLUE, GREEN, BROWN, PURPLE, GREY = "#3f789e", "#3f7e4f", "#8a6d3b", "#7e5f9e", "#5f6a72"
# Title and body of a node: one where the user chooses something, and a note
YOURS, NOTE = ("#232", "#353"), ("#432", "#653")


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
    if not choices:
        return ""
    return choices[0]["key"] if spec[0] == DYNAMIC else choices[0]


@dataclass
class _Column:
    """Nodes below each other, in pixels of the canvas."""

    width: int
    nodes: list[tuple[dict[str, Any], int]] = field(default_factory=list)  # and the height that is kept free


class Graph:
    """Collects nodes, column by column within titled steps, and writes them as a workflow file.

    Places follow from the heights at which the frontends draw (node_sizes.json), so nothing lies over anything.

        graph = Graph(info)
        graph.step("1 Model", BLUE)
        graph.column(360)
        graph.add("model", "UNETLoader", unet_name=...)
    """

    def __init__(self, info: Info) -> None:
        self._info = info
        self._nodes: dict[str, dict[str, Any]] = {}
        self._links: list[list[Any]] = []
        self._steps: list[tuple[str, str, list[_Column]]] = []
        self._drawn: dict[str, int] = json.loads(NODE_SIZES.read_text("utf-8"))

    def step(self, title: str, color: str) -> None:
        """A titled frame around the columns that follow; without a title there is no frame."""
        self._steps.append((title, color, []))

    def column(self, width: int = 340) -> None:
        """A column of the step."""
        self._steps[-1][2].append(_Column(width))

    def kinds(self) -> set[str]:
        """Node classes in the graph."""
        return {node["type"] for node in self._nodes.values()}

    def add(
        self,
        name: str,
        kind: str,
        *,
        tall: int = 0,
        title: str | None = None,
        color: tuple[str, str] | None = None,
        models: Sequence[ModelFile] = (),
        **inputs: Any,
    ) -> None:
        """One node, below the last one of the column.

        Args:
            name: how later nodes refer to it.
            kind: node class.
            tall: pixels; more than the node needs, for texts and pictures.
            title: shown instead of the class's display name.
            color: of its title and its body.
            models: files that it names, for the host's offer to download what is missing.
            inputs: values, or ("node name", slot) for a connection.
        """
        specs = inputs_of(self._info, kind)
        unknown = set(inputs) - set(specs)
        if unknown:
            raise KeyError(f"{kind} has no input {sorted(unknown)}; it has {list(specs)}.")
        node = self._place(kind, tall)
        node["outputs"] = [
            {"name": n, "type": t, "links": []}
            for n, t in zip(self._info[kind]["output_name"], self._info[kind]["output"], strict=True)
        ]
        node["properties"]["Node name for S&R"] = kind
        if models:
            node["properties"]["models"] = [asdict(m) for m in models]
        if title:
            node["title"] = title
        if color:
            node["color"], node["bgcolor"] = color
        for key, spec in specs.items():
            if is_widget(spec):
                given = inputs.get(key, default_of(spec))
                linked = isinstance(given, tuple)
                node["widgets_values"].append(default_of(spec) if linked else given)
                if has_control(key, spec):
                    node["widgets_values"].append("fixed")
                if linked:
                    link = self._connect(given, node, spec[0])
                    node["inputs"].append(
                        {"name": key, "type": spec[0], "widget": {"name": key}, "link": link}
                    )
                continue
            node["inputs"].append(
                {"name": key, "type": spec[0], "link": self._connect(inputs.get(key), node, spec[0])}
            )
        self._nodes[name] = node

    def note(self, text: str, tall: int) -> None:
        """A Markdown note, below the last node of the column; it exists for the reader only."""
        node = self._place("MarkdownNote", tall)
        node["widgets_values"].append(text)
        node["title"] = "Start here"
        node["color"], node["bgcolor"] = NOTE
        self._nodes[f"note {node['id']}"] = node

    def _place(self, kind: str, tall: int) -> dict[str, Any]:
        number = len(self._nodes) + 1
        column = self._steps[-1][2][-1]
        height = max(tall, self._drawn.get(kind, 0))
        node: dict[str, Any] = {
            "id": number,
            "type": kind,
            "pos": [0, 0],
            "size": [column.width, height],
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [],
        }
        column.nodes.append((node, height + GROWS_BY.get(kind, 0)))
        return node

    def _connect(self, source: Link | None, node: dict[str, Any], kind: str) -> int | None:
        if source is None:
            return None
        origin, slot = self._nodes[source[0]], source[1]
        link = len(self._links) + 1
        self._links.append([link, origin["id"], slot, node["id"], len(node["inputs"]), kind])
        origin["outputs"][slot]["links"].append(link)
        return link

    def _lay_out(self) -> list[dict[str, Any]]:
        """Give every node its place; the steps' frames."""
        groups: list[dict[str, Any]] = []
        x = 0
        for title, color, columns in self._steps:
            left, bottom = x, 0
            x += PADDING
            for column in columns:
                y = 0
                for node, height in column.nodes:
                    node["pos"] = [x, y]
                    bottom = max(bottom, y + height)
                    y += height + TITLE + GAP
                x += column.width + GAP
            x += PADDING - GAP
            top = -TITLE - PADDING - GROUP_TITLE
            bounding = [left, top, x - left, bottom + PADDING - top]
            x += GAP
            if not title:
                continue
            groups.append(
                {
                    "id": len(groups) + 1,
                    "title": title,
                    "bounding": bounding,
                    "color": color,
                    "font_size": 24,
                    "flags": {},
                }
            )
        return groups

    def save(self, path: Path) -> None:
        """Write the workflow file; it opens with the first step in view."""
        groups = self._lay_out()
        view = {"scale": OPENING_SCALE, "offset": [OPENING_LEFT, OPENING_TOP]}
        workflow = {
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": list(self._nodes.values()),
            "links": self._links,
            "groups": groups,
            "config": {},
            "extra": {"ds": view, "kilnOpening": view},  # the second: see web/opening_view.mjs
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
                inputs[name] = next(values, default_of(spec))  # a newer host may have more widgets
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


def opened(info: Info, note: str, tall: int, width: int = 440) -> Graph:
    """A graph that begins with a note, in a column so many pixels wide."""
    graph = Graph(info)
    graph.step("", "")
    graph.column(width)
    graph.note(note, tall)
    return graph
