"""The house rule of docs/design.md, checked on the source: calls go downstairs, web -> nodes -> trainer -> torch.

And a few bans for every file: no pickle, no eval, no non-ASCII source (the node registry's lint rejects it).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACK = "pack"  # stands for the repository root, whose folder may have any name

HOST_INSIDES = {
    *(
        "comfy",
        "comfy_execution",
        "comfy_extras",
        "comfy_api_nodes",
        "app",
        "api_server",
        "folder_paths",
        "server",
    ),
    *("execution", "nodes", "latent_preview", "node_helpers", "protocol", "main"),
}
HOST_API = {"comfy_api", "comfy_api_nodes"}
HEAVY = {"torch", "torchvision", "peft", "diffusers", "transformers", "safetensors", "numpy", "PIL"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources(folder: str = ".") -> list[Path]:
    """The Python files below a folder of the repository, without hidden and fetched folders."""
    files = sorted((REPO / folder).rglob("*.py"))
    hidden = (".", "node_modules", "demo_output")
    return [f for f in files if not any(part.startswith(hidden) for part in f.relative_to(REPO).parts)]


def imports_of(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import below `tree`; relative ones made absolute from `module`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def module_name(file: Path) -> str:
    parts = file.relative_to(REPO).with_suffix("").parts
    return ".".join([PACK, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def is_below(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def forbidden_imports(source: str, module: str, *, is_package: bool) -> list[str]:
    """The imports that break the house rule in one file, as "line: name"."""
    room = ".".join(module.split(".")[1:])
    broken = []
    for line, name in imports_of(ast.parse(source), module, is_package=is_package):
        top = name.split(".")[0]
        if is_below(room, "trainer"):
            upstairs = top == PACK and not is_below(name, f"{PACK}.trainer")
            bad = upstairs or top in HOST_INSIDES | HOST_API | {"web", "headless", "scripts", "tests"}
        elif is_below(room, "nodes") and not is_below(room, "nodes.host"):
            bad = top in HOST_INSIDES or is_below(name, f"{PACK}.headless")
        else:
            bad = False
        if bad:
            broken.append(f"{line}: {name}")
    return broken


def forbidden_calls(source: str) -> list[str]:
    """Uses of pickle, torch.load, eval and exec in one file, as "line: what"."""
    broken = []
    tree = ast.parse(source)
    for line, name in imports_of(tree, PACK, is_package=True):
        if name.split(".")[0] in PICKLES or name == "torch.load":
            broken.append(f"{line}: {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            broken.append(f"{node.lineno}: torch.load")
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec")
        ):
            broken.append(f"{node.lineno}: {node.func.id}(")
    return broken


def imports_at_load(source: str) -> list[str]:
    """The top-level names that a module imports when it is imported (not inside functions or TYPE_CHECKING)."""

    def run_at_load(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for statement in body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
                yield from run_at_load(statement.orelse)
                continue
            yield statement

    statements = ast.Module(list(run_at_load(ast.parse(source).body)), [])
    return [name.split(".")[0] for _, name in imports_of(statements, PACK, is_package=True)]


@pytest.mark.parametrize("folder", ["trainer", "nodes"])
def test_nobody_looks_up(folder: str) -> None:
    broken = {}
    for file in sources(folder):
        found = forbidden_imports(
            file.read_text("utf-8"), module_name(file), is_package=file.name == "__init__.py"
        )
        if found:
            broken[str(file.relative_to(REPO))] = found
    assert broken == {}


@pytest.mark.parametrize("folder", ["trainer", "nodes"])
def test_no_pickle_and_no_eval(folder: str) -> None:
    broken = {
        str(file.relative_to(REPO)): forbidden_calls(file.read_text("utf-8")) for file in sources(folder)
    }
    assert {file: found for file, found in broken.items() if found} == {}


def test_the_root_imports_nothing_heavy_and_nothing_of_the_host() -> None:
    names = imports_at_load((REPO / "__init__.py").read_text("utf-8"))
    assert set(names) & (HOST_INSIDES | HOST_API | HEAVY | {PACK}) == set()


def test_python_sources_are_ascii() -> None:
    files = sources()
    assert len(files) > 5
    assert [str(file.relative_to(REPO)) for file in files if not file.read_bytes().isascii()] == []


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("trainer.loop", "import comfy.utils", ["1: comfy.utils"]),
        ("trainer.loop", "from comfy_api.latest import io", ["1: comfy_api.latest.io"]),
        ("trainer.loop", "def f():\n    from ..nodes.host import paths", ["2: pack.nodes.host.paths"]),
        ("trainer.adapter.inject", "from ...nodes import types", ["1: pack.nodes.types"]),
        ("trainer.adapter.inject", "from ..events import Step\nimport torch", []),
        (
            "nodes.training",
            "from comfy_api.latest import io\nfrom ..trainer import loop\nfrom .host import x",
            [],
        ),
        ("nodes.training", "import folder_paths", ["1: folder_paths"]),
        ("nodes.training", "import comfy.model_management as mm", ["1: comfy.model_management"]),
        ("nodes.host.paths", "import folder_paths\nimport comfy.utils", []),
    ],
)
def test_the_import_check_sees(module: str, source: str, broken: list[str]) -> None:
    assert forbidden_imports(source, f"{PACK}.{module}", is_package=False) == broken


def test_the_call_check_sees() -> None:
    source = "import pickle\nimport torch\nx = torch.load('f')\ny = eval('1')\nmodel.eval()\nload_file('f')\n"
    assert sorted(forbidden_calls(source)) == ["1: pickle", "3: torch.load", "4: eval("]


def test_the_load_check_sees() -> None:
    source = "import os\nif True:\n    import torch\ndef f():\n    import peft\n"
    assert imports_at_load(source) == ["os", "torch"]
