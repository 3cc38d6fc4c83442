"""Run ComfyUI's main.py in an environment that lacks parts of torchvision and torchaudio.

`scripts/host.py` starts this with the development environment's Python and the host's folder as working
directory; every argument goes to the host. By hand:

    cd path/to/ComfyUI && python path/to/scripts/launch_host.py --cpu --port 8188

The workarounds live here and not in the pack because a user's own ComfyUI has no need of them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
import runpy
import signal
import sys
import threading
import types
from pathlib import Path
from typing import Any

KEEP_ALIVE: list[Any] = []
"""Operator definitions vanish with their torch.library.Library object."""

STDIN_IS_LEASH = "KILN_STDIN_IS_LEASH"
"""Set by scripts/host.py: its end of our stdin closes when it dies, and a server must not outlive its owner."""


def main() -> None:
    """Prepare this process, then become the host."""
    host = Path.cwd()
    if not (host / "main.py").is_file():
        raise SystemExit(f"{host} has no main.py: run this with ComfyUI's folder as the working directory.")
    # A shell that runs us in the background without job control has SIGINT ignored; the host stops by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.pop(STDIN_IS_LEASH, None):
        threading.Thread(target=exit_with_owner, daemon=True).start()
    sys.path[0] = str(host)  # was the folder of this script
    prepare(host)
    sys.argv[0] = "main.py"
    runpy.run_path("main.py", run_name="__main__")


def prepare(host: Path) -> None:
    """Make the host's imports work in this process."""
    mend_torchvision()
    if host_version(host) > (0, 3, 75):
        stand_in_for_torchaudio()


def exit_with_owner() -> None:
    """Block until stdin closes, then leave at once."""
    while os.read(0, 1024):  # not sys.stdin: Python aborts at exit while a thread waits in its buffer
        pass
    os._exit(1)


def host_version(host: Path) -> tuple[int, ...]:
    """(0, 3, 75) from the host's comfyui_version.py; () where there is none."""
    file = host / "comfyui_version.py"
    if not file.is_file():
        return ()
    version = runpy.run_path(str(file))["__version__"]
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def mend_torchvision() -> None:
    """See cpu_torchvision.py. Any other torch build is left alone: the host warns when torch is imported early."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        KEEP_ALIVE.append(runpy.run_path(str(Path(__file__).with_name("cpu_torchvision.py"))))


def stand_in_for_torchaudio() -> None:
    """ComfyUI 0.33 imports torchaudio at start-up (0.3.75 does without): let the import succeed without it.

    torchaudio 2.11.0, the newest, does not load beside torch 2.13.0+cpu, so the environment leaves it out. Audio
    nodes then fail when they are run, with a message that says why.
    """
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        package = Absent("torchaudio")
        package.__path__ = []
        for part in ("functional", "transforms"):
            setattr(package, part, Absent(f"torchaudio.{part}"))
            sys.modules[f"torchaudio.{part}"] = getattr(package, part)
        sys.modules["torchaudio"] = package


class Absent(types.ModuleType):
    """A module whose functions all say that it is not installed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)  # importlib.util.find_spec asks for it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(f"{self.__name__}.{name} was called, but torchaudio is not installed here.")

        return missing


if __name__ == "__main__":
    main()
