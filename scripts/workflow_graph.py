"""A workflow file as a graph built from code, and as a prompt for the server.

A workflow file is what the canvas saves: nodes with places, and widget values by position. The server wants prompts:
inputs by name. The canvas does that step for a user; `to_prompt` does it for the demo and the tests. Building the
files from code keeps them true to the nodes: an input that is renamed or missing fails here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Info = dict[str, Any]  # /object_info: node class -> definition
Link = tuple[str, int]  # name of a node in the builder, output slot

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# Inputs whose widget is followed by a second one, "control after generate", in the saved values
CONTROLLED = ("seed", "noise_seed")
# The model files that the templates name
WAN_FILES = {
    "model": "wan2.1_t2v_1.3B_fp16.safetensors",
    "clip": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "vae": "wan_2.1_vae.safetensors",
}


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
