"""A prompt with an impossible value on one of our nodes is refused whole.

The host checks each output of a prompt by itself: where the training node has 0 steps, it drops the outputs behind it,
runs the others and calls that a success. With the outputs behind the faulty node as the only targets none is left, and
the host refuses the prompt with its own sentence about the value, which every frontend shows.
"""

from __future__ import annotations

import inspect
from typing import Any

from comfyui_version import __version__
from server import PromptServer

import nodes as host_nodes

OURS = "Kiln"  # how our nodes' ids begin
# 0.3.75 takes any value for a V3 node's list, 0.33 refuses one that is not in it
CHECKS_COMBOS = tuple(int(n) for n in __version__.split(".")[:2]) > (0, 3)
TARGETS = "partial_execution_targets"  # the host's own key: output nodes to run


def refuse_whole_prompts() -> None:
    """Called once, when the host loads the pack."""
    PromptServer.instance.add_on_prompt_handler(keep_only_faulty_outputs)


def keep_only_faulty_outputs(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a POST to /prompt; changed where one of our nodes has a value that the host will not accept."""
    prompt = body.get("prompt")
    if not isinstance(prompt, dict):
        return body
    faulty = {name for name, node in prompt.items() if _is_faulty(node)}
    if not faulty:
        return body
    targets = [
        name
        for name, node in prompt.items()
        if getattr(_class(node), "OUTPUT_NODE", False) and faulty & _with_inputs(prompt, name)
    ]
    asked = body.get(TARGETS)
    targets = [name for name in targets if asked is None or name in asked]
    return {**body, TARGETS: targets} if targets else body


def _class(node: Any) -> Any:
    return host_nodes.NODE_CLASS_MAPPINGS.get(node.get("class_type")) if isinstance(node, dict) else None


def _is_faulty(node: Any) -> bool:
    """Whether one of our nodes lacks an input, or has a constant out of its range or list."""
    kind = _class(node)
    if kind is None or not str(node["class_type"]).startswith(OURS):
        return False
    values, known = node.get("inputs") or {}, kind.INPUT_TYPES()
    checked_by_us = _names_of(getattr(kind, "validate_inputs", None))
    if any(name not in values for name in known.get("required", {})):
        return True
    listed = {**known.get("required", {}), **known.get("optional", {})}
    return any(
        name in listed and name not in checked_by_us and not _is_possible(value, *listed[name])
        for name, value in values.items()
        if not isinstance(value, list)  # a link
    )


def _names_of(function: Any) -> set[str]:
    return set() if function is None else set(inspect.signature(function).parameters)


def _is_possible(value: Any, kind: Any, options: dict[str, Any] | None = None, *_: Any) -> bool:
    options = options or {}
    if kind in ("INT", "FLOAT"):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return False
        return bool(options.get("min", number) <= number <= options.get("max", number))
    choices = options.get("options") if kind == "COMBO" and CHECKS_COMBOS else None
    return choices is None or bool(options.get("multiselect")) or value in choices


def _with_inputs(prompt: dict[str, Any], name: str) -> set[str]:
    """The node and all that it depends on."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        at = waiting.pop()
        if at in found or not isinstance(prompt.get(at), dict):
            continue
        found.add(at)
        links = (v for v in (prompt[at].get("inputs") or {}).values() if isinstance(v, list) and v)
        waiting += [str(link[0]) for link in links]
    return found
