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


# The floors of the house, from the ground up: a room imports from rooms before it, and from its own. A file of
# trainer's root is a room of its own. Modules in one tuple stand side by side and do not import each other.
FLOORS: list[tuple[str, ...]] = [
    (
        "trainer.errors",
        "trainer.families",
        "trainer.rng",
        "trainer.parsers",
        "trainer.temporary",
    ),
    ("trainer.events", "trainer.safefile", "trainer.conditioning", "trainer.patterns"),
    ("trainer.config",),
    ("trainer.denoiser", "trainer.report", "trainer.noise_defaults"),
    ("trainer.adapter", "trainer.dataset"),
    ("trainer.lora_files",),
    ("trainer.model_files",),
    ("trainer.memory",),
    ("trainer.runs",),
    ("trainer.loop",),
    ("nodes.host.paths", "nodes.host.metadata", "nodes.host.origins"),
    ("nodes.host.memory",),
    ("nodes.host.models", "nodes.host.canvas"),
    ("nodes.host.encoding", "nodes.host.running"),
]
MOST_FILES_AT_ROOT = 12


def room_of(module: str) -> str | None:
    """The room that a module ("trainer.loop.train") belongs to; None for those above the floors."""
    return next((room for floor in FLOORS for room in floor if is_below(module, room)), None)


def imported_modules(folder: str) -> dict[str, set[str]]:
    """By module of a folder ("trainer.loop.train"): the modules of trainer/ and nodes/ that it imports, anywhere."""
    ours = {module_name(f).removeprefix(f"{PACK}.") for top in ("trainer", "nodes") for f in sources(top)}
    found = {}
    for file in sources(folder):
        module = module_name(file)
        names = imports_of(ast.parse(file.read_text("utf-8")), module, is_package=file.name == "__init__.py")
        imported = set()
        for _, name in names:
            if not is_below(name, PACK):  # `import nodes` is the host's
                continue
            short = name.removeprefix(f"{PACK}.")
            imported.add(short if short in ours else short.rpartition(".")[0])
        module = module.removeprefix(f"{PACK}.")
        found[module] = (imported & ours) - {module}
    return found


def climbs(module: str, imported: set[str]) -> list[str]:
    """The imports of a module that go to a higher floor, or to a room beside its own."""
    level = {room: index for index, floor in enumerate(FLOORS) for room in floor}
    here = room_of(module)
    broken = []
    for name in sorted(imported):
        there = room_of(name)
        if here is not None and here != there and (there is None or level[there] >= level[here]):
            broken.append(name)
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
def test_no_import_climbs_a_floor(folder: str) -> None:
    broken = {module: climbs(module, imported) for module, imported in imported_modules(folder).items()}
    assert {module: names for module, names in broken.items() if names} == {}


def test_every_room_has_a_floor() -> None:
    modules = [*imported_modules("trainer"), *imported_modules("nodes/host")]
    above = {m for m in modules if room_of(m) is None}
    assert above == {"trainer", "nodes.host"}, "the packages themselves, which hold nothing"


@pytest.mark.parametrize("folder", ["trainer", "nodes", "scripts", "tests"])
def test_no_two_files_import_each_other(folder: str) -> None:
    imported = imported_modules(folder)
    if folder in ("scripts", "tests"):  # these import each other by their names from the repository's root
        imported = {
            module_name(f).removeprefix(f"{PACK}."): {
                name
                for _, full in imports_of(ast.parse(f.read_text("utf-8")), PACK, is_package=True)
                for name in (full, full.rpartition(".")[0])
            }
            for f in sources(folder)
        }
    pairs = [(a, b) for a, names in imported.items() for b in names if a in imported.get(b, ())]
    assert pairs == []


def test_few_files_lie_at_the_root_of_the_engine() -> None:
    assert len(list((REPO / "trainer").glob("*.py"))) <= MOST_FILES_AT_ROOT


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


def test_the_floor_check_sees() -> None:
    assert climbs("trainer.runs.run", {"trainer.loop.train", "trainer.errors"}) == ["trainer.loop.train"]
    assert climbs("trainer.adapter.fused", {"trainer.dataset.items", "trainer.adapter.flat_parameter"}) == [
        "trainer.dataset.items"
    ]


def test_the_call_check_sees() -> None:
    source = "import pickle\nimport torch\nx = torch.load('f')\ny = eval('1')\nmodel.eval()\nload_file('f')\n"
    assert sorted(forbidden_calls(source)) == ["1: pickle", "3: torch.load", "4: eval("]


def test_the_load_check_sees() -> None:
    source = "import os\nif True:\n    import torch\ndef f():\n    import peft\n"
    assert imports_at_load(source) == ["os", "torch"]
