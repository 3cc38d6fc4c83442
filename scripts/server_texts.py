"""Sentences that the engine and the nodes say to a user, read off the sources as templates: "The folder {} is empty".

    python -m scripts.server_texts          those that web/server_texts.mjs has no Chinese for

What is said: messages of KilnError, warnings, notes, and whatever stands in the files that make advice, estimates and
reasons, which other sentences are filled in with.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

from scripts.host_files import REPO

CATALOGUE = REPO / "web" / "server_texts.mjs"
SAYS = {"KilnError", "ValueError", "warn", "MessageEvent", "StartEvent", "__init__"}
LATER = {"Refused": 1, "_refuse": 1, "Problem": 2, "BadRow": 1}
"""Where what is said is a later argument, and which."""

SPOKEN = (
    "nodes/captions.py",
    "nodes/dataset_scans.py",
    "nodes/encoding.py",
    "nodes/host/models/lora.py",
    "nodes/upload_routes.py",
)
"""Files of nodes, of which every f-string and every text that is returned is shown to the user."""

SPOKEN_THROUGHOUT = (
    "nodes/host/models/prediction.py",
    "nodes/host/models/start_from.py",
    "nodes/host/running/requests.py",
    "trainer/config/foreign_settings.py",
    "trainer/config/import_settings.py",
    "trainer/config/noise_ranges.py",
    "trainer/dataset/buckets.py",
    "trainer/dataset/captioning.py",
    "trainer/dataset/controls.py",
    "trainer/dataset/encode.py",
    "trainer/dataset/encode_progress.py",
    "trainer/dataset/encoded.py",
    "trainer/dataset/flip.py",
    "trainer/dataset/items.py",
    "trainer/dataset/names.py",
    "trainer/dataset/pieces.py",
    "trainer/dataset/quality.py",
    "trainer/dataset/remarks.py",
    "trainer/dataset/upload.py",
    "trainer/lora_files/layer_checks.py",
    "trainer/lora_files/merge.py",
    "trainer/lora_files/resize.py",
    "trainer/loop/advice.py",
    "trainer/loop/checks.py",
    "trainer/memory/estimate.py",
    "trainer/memory/mapped.py",
    "trainer/model_files/extract_lora.py",
    "trainer/model_files/merge_into_file.py",
    "trainer/parsers.py",
    "trainer/patterns.py",
    "trainer/report/tensorboard.py",
    "trainer/runs/differences.py",
    "trainer/runs/resume.py",
    "trainer/runs/run.py",
    "trainer/runs/samples.py",
)
"""Files whose every text of several words is shown to the user, wherever it stands, but for what is UNSAID."""

UNSAID = {
    "checkpoint activations": "a choice of the memory level, called so in both languages",
    "The density": "the beginning of a warning that is not shown",
    "a an and at by for from in is it its of on or the this to with": "words that are not counted",
    "caption length": "stands on the contact sheet, a picture, whose words are English",
    "caption of {}": "on the contact sheet",
    "empty mask": "on the contact sheet",
    "stretched mask": "on the contact sheet",
    "The given buffer is not writable": "a warning of torch that is not shown",
    "kohya locon": "a value of another trainer",
    "keep both": "an answer that the browser sends",
    "model caption": "the name of a change in the journal; the page has its own words",
    "several pieces": "a choice of clip_part",
    "stream blocks": "a choice of the memory level",
    "stream from file": "a choice of the memory level",
    "whole in pieces": "a choice of clip_part",
    "without a caption": "what stands for a name",
    "without or by a model": "a choice of replace",
}
"""What stands in these files and is not shown, or not translated: and why."""


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
    yield from (sentence for sentence in spoken_throughout() if sentence not in UNSAID)
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


def spoken_throughout() -> Iterator[str]:
    """Every sentence of those files, with what is UNSAID."""
    for name in SPOKEN_THROUGHOUT:
        yield from _sentences(_texts(ast.parse((REPO / name).read_text("utf-8"))))


def _texts(tree: ast.AST) -> list[ast.expr]:
    """Every text of a file as a whole, but docstrings, and what the log is told."""
    parts: set[int] = set()
    for node in ast.walk(tree):
        inner: list[ast.AST] = []
        if isinstance(node, ast.Expr):
            inner = [node.value] if isinstance(node.value, ast.Constant) else []
        elif isinstance(node, ast.JoinedStr):
            inner = [value for value in node.values if isinstance(value, ast.Constant)]
        elif isinstance(node, ast.BinOp) and template(node) is not None:
            inner = [node.left, node.right]
        elif isinstance(node, ast.Call) and getattr(getattr(node.func, "value", None), "id", "") == "log":
            inner = [*node.args]
        parts.update(map(id, inner))
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    found = [node for node in ast.walk(tree) if isinstance(node, kinds) and id(node) not in parts]
    return [node for node in found if r"\b" not in (template(node) or "")]  # no regular expression


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _sentences(nodes: list[ast.expr]) -> Iterator[str]:
    """Those that are words and not names or numbers."""
    for node in nodes:
        found = template(node)
        if found and len(re.sub(r"\{\}|[^a-zA-Z]", "", found)) > 7 and " " in found.strip():
            yield found.rstrip()


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
