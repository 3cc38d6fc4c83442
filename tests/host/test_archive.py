"""The published archive: small, without the workshop, and whole in a fresh ComfyUI."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.archive import pack
from scripts.host import start_host
from scripts.host_client import HostClient
from scripts.host_files import PACK_NAME, REPO, workspace

LIMIT = 2_000_000  # bytes
# Found in code, the registry's scan asks for a reason. Those that stand in the pack, and why:
FLAGGED = {
    "importlib.import_module": {
        "headless.py",  # the pack itself, whose folder's name may hold a dash
        "nodes/host/models/fused_kernels.py",  # a package of the host that older ones lack
        "trainer/loop/optim.py",  # optimizers of optional packages
        "trainer/memory/quantised_base.py",  # bitsandbytes, where it is there
    },
    "exec_module": {
        "headless.py",  # likewise
        "trainer/lora_files/merge.py",  # one file of peft, without the rest of it
    },
    "ctypes": {"trainer/memory/cpu_tuning.py"},  # glibc's mallopt: freed memory is used again and given back
}
NEVER = ("subprocess", "os.system", "pickle.load", "urllib.request", "requests.get", "__import__")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "node.zip"
    pack(path)
    return path


def test_it_is_small_and_holds_what_runs(archive: Path) -> None:
    assert archive.stat().st_size < LIMIT
    names = zipfile.ZipFile(archive).namelist()
    for needed in (
        "__init__.py",
        "pyproject.toml",
        "requirements.txt",
        "LICENSE",
        "README.md",
        "headless.py",
    ):
        assert needed in names
    for folder in (
        "nodes/host/",
        "trainer/loop/",
        "trainer/presets/",
        "web/docs/",
        "locales/zh/",
        "workflows/",
        "subgraphs/",
    ):
        assert any(name.startswith(folder) for name in names), folder
    workshop = re.compile(
        r"(tests|scripts|benchmarks|docs|\.github|\.ci|demo_output)/|.*\.(pyc|safetensors)$"
    )
    assert [name for name in names if workshop.match(name)] == []


def test_code_that_the_registry_flags_is_written_down(archive: Path) -> None:
    found: dict[str, set[str]] = {}
    with zipfile.ZipFile(archive) as opened:
        for name in (n for n in opened.namelist() if n.endswith(".py")):
            text = opened.read(name).decode("utf-8")
            for word in (*FLAGGED, *NEVER):
                if re.search(rf"\b{re.escape(word)}\b", text):
                    found.setdefault(word, set()).add(name)
            assert not re.search(r"(?<![\w.])(eval|exec)\(", text), name
    assert found == FLAGGED


def test_a_fresh_host_loads_all_of_it(archive: Path) -> None:
    base = workspace("archive", fresh=True)
    place = base / "custom_nodes" / PACK_NAME
    place.unlink()
    zipfile.ZipFile(archive).extractall(place)
    try:
        with start_host(base, python=Path(sys.executable), cpu=True) as host:
            client = HostClient(host.url)
            wanted = json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
            assert set(wanted) <= set(client.object_info())
            templates = client.get_json("/api/workflow_templates")[PACK_NAME]
            assert len(templates) == len(list((REPO / "workflows").glob("*.json")))
            assert b"registerExtension" in client.request(f"/extensions/{PACK_NAME}/kiln.js")
    finally:
        shutil.rmtree(place)
