"""The menu and the search words of the nodes."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

REPO = Path(__file__).parents[2]


def menu() -> dict[str, dict[str, tuple[str, ...]]]:
    """MENU of nodes/listing.py, which imports the host."""
    tree = ast.parse((REPO / "nodes" / "listing.py").read_text("utf-8"))
    (value,) = (
        n.value
        for n in tree.body
        if isinstance(n, ast.AnnAssign) and n.value and ast.unparse(n.target) == "MENU"
    )
    return dict(ast.literal_eval(value))


def test_every_node_is_on_one_shelf_with_words() -> None:
    listed = [node for shelf in menu().values() for node in shelf]
    assert sorted(listed) == sorted(
        json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
    )
    for words in (words for shelf in menu().values() for words in shelf.values()):
        assert len(words) >= 3 and len(set(words)) == len(words)
        assert all(re.fullmatch(r"[a-z0-9 -]+", word) for word in words)


def test_what_people_look_for_is_among_the_words() -> None:
    words = {word for shelf in menu().values() for nodes in shelf.values() for word in nodes}
    wanted = {
        "lora",
        "train",
        "finetune",
        "fine-tune",
        "dreambooth",
        "lora dataset",
        "caption",
        "vram",
        "merge lora",
    }
    assert wanted <= words


def test_socket_colours_are_the_same_in_both_ways_of_drawing() -> None:
    pattern = re.compile(r'\b(KILN_\w+|LORA_MODEL): "(#[0-9a-f]{6})')
    canvas = dict(pattern.findall((REPO / "web" / "socket_colours.mjs").read_text("utf-8")))
    nodes_2 = dict(
        re.findall(r"--color-datatype-(\w+): (#[0-9a-f]{6})", (REPO / "web" / "kiln.css").read_text("utf-8"))
    )
    own = set(re.findall(r'io\.Custom\("(\w+)"\)', (REPO / "nodes" / "types.py").read_text("utf-8"))) - {
        "LOSS_MAP"
    }
    assert canvas == nodes_2 and set(canvas) == own
