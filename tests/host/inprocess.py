"""The host's library and this pack in one process without a server: for scripts that look inside a model.

Such a script runs in a process of its own (the host's modules are called `nodes` and `server`, as ours), with the
host's folder as working directory; see test_parity.py.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parents[2]


def load_file(name: str, path: Path, package: Path | None = None) -> ModuleType:
    """Import one file under a name of our choice; with `package`, as a package whose modules lie in that folder."""
    search = None if package is None else [str(package)]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=search)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def start(cpu: bool = True) -> None:
    """Make `comfy`, `folder_paths` and the host's `nodes` importable, and the pack as `lora_kiln`.

    Once: in a fork of fork_server.py it is done.
    """
    if "lora_kiln" in sys.modules:
        return
    sys.path.insert(0, os.getcwd())
    sys.argv = [sys.argv[0], *(["--cpu"] if cpu else [])]
    load_file("launch_host", REPO / "scripts" / "launch_host.py").prepare(Path.cwd())
    import comfy.options
    import utils.install_util  # noqa: F401 - as main.py does, before the host's nodes.py puts comfy/ on the path

    comfy.options.enable_args_parsing()
    load_file("lora_kiln", REPO / "__init__.py", REPO)
