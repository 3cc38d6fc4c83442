"""Every node's id stands in the source as a literal, where tools that do not run the code look for it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

REPO = Path(__file__).parents[2]


def listed_classes() -> set[str]:
    """The classes that nodes/extension.py gives to the host."""
    tree = ast.parse((REPO / "nodes" / "extension.py").read_text("utf-8"))
    lists = [n for n in ast.walk(tree) if isinstance(n, ast.List)]
    return {e.attr for each in lists for e in each.elts if isinstance(e, ast.Attribute)}


def literal_ids() -> dict[str, list[str]]:
    """By class: the strings given as node_id= inside it."""
    found: dict[str, list[str]] = {}
    for file in (REPO / "nodes").glob("*.py"):
        for each in ast.parse(file.read_text("utf-8")).body:
            if isinstance(each, ast.ClassDef):
                values = [
                    k.value
                    for n in ast.walk(each)
                    if isinstance(n, ast.Call)
                    for k in n.keywords
                    if k.arg == "node_id"
                ]
                found[each.name] = [v.value for v in values if isinstance(v, ast.Constant)]
    return {name: ids for name, ids in found.items() if ids}


def test_every_node_has_a_literal_id_of_its_class() -> None:
    assert literal_ids() == {name: [name] for name in listed_classes()}
    assert len(listed_classes()) >= 31


def test_ids_are_those_of_the_locales() -> None:
    texts = json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
    assert set(texts) == listed_classes()
