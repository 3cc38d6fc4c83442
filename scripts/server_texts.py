"""Sentences that the engine and the nodes say to a user, read off the sources as templates: "The folder {} is empty".

    python -m scripts.server_texts          those that web/server_texts.mjs has no Chinese for

What is said: messages of KilnError, warnings, notes, and whatever stands in the files that make advice and estimates.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

from scripts.host_files import REPO

CATALOGUE = REPO / "web" / "server_texts.mjs"
SAYS = {"KilnError", "warn", "MessageEvent", "StartEvent", "__init__"}
LATER = {"Refused": 1, "_refuse": 1, "Problem": 2}
"""Where what is said is a later argument, and which."""

SPOKEN = (
    "nodes/captions.py",
    "nodes/dataset_scans.py",
    "nodes/encoding.py",
    "nodes/host/models/lora.py",
    "nodes/upload_routes.py",
    "trainer/dataset/buckets.py",
    "trainer/dataset/captioning.py",
    "trainer/dataset/encode_progress.py",
    "trainer/dataset/encoded.py",
    "trainer/dataset/items.py",
    "trainer/dataset/names.py",
    "trainer/dataset/pieces.py",
    "trainer/dataset/remarks.py",
    "trainer/dataset/upload.py",
    "trainer/lora_files/merge.py",
    "trainer/lora_files/resize.py",
    "trainer/loop/advice.py",
    "trainer/memory/estimate.py",
    "trainer/model_files/extract_lora.py",
    "trainer/model_files/merge_into_file.py",
    "trainer/runs/resume.py",
    "trainer/runs/run.py",
)
"""Files whose every sentence is shown to the user."""


def template(node: ast.expr) -> str | None:
    """A text or an f-string with {} for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = template(node.left), template(node.right)
        return None if left is None or right is None else left + right
    return None


def said() -> Iterator[str]:
    """Every sentence, once or more."""
    for folder in ("trainer", "nodes"):
        for file in sorted((REPO / folder).rglob("*.py")):
            tree = ast.parse(file.read_text("utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and _name(node.func) in SAYS:
                    yield from _sentences(
                        [*node.args[:1], *(k.value for k in node.keywords if k.arg == "text")]
                    )
                elif isinstance(node, ast.Call) and _name(node.func) in LATER:
                    place = LATER[_name(node.func)]
                    yield from _sentences(node.args[place : place + 1])
            if file.relative_to(REPO).as_posix() in SPOKEN:
                yield from _sentences([n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)])
                yield from _sentences(
                    [n.value for n in ast.walk(tree) if isinstance(n, ast.Return) and n.value]
                )


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _sentences(nodes: list[ast.expr]) -> Iterator[str]:
    """Those that are words and not names or numbers."""
    for node in nodes:
        found = template(node)
        if found and len(re.sub(r"\{\}|[^a-zA-Z]", "", found)) > 7 and " " in found.strip():
            yield found


def translated() -> dict[str, str]:
    """English -> Chinese of the catalogue."""
    text = CATALOGUE.read_text("utf-8")
    body = text[
        text.index("export const CHINESE = {") + len("export const CHINESE = ") : text.index("\n};") + 2
    ]
    return dict(json.loads(re.sub(r",\s*}$", "}", body)))


if __name__ == "__main__":
    known = translated()
    for sentence in dict.fromkeys(said()):
        if sentence not in known:
            print(json.dumps(sentence))
