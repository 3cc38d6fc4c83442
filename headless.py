"""The shell's door: `python headless.py train run.toml`, alone or under `accelerate launch`.

ComfyUI's library is found as scripts/host.py finds it (COMFYUI_DIR, the ComfyUI that this pack lies in, or a fetched
one); no server is started. The pack is loaded as a package under a name of its own, as the host does, so that `nodes`
stays the host's module.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = "lora_kiln"


def train(arguments: argparse.Namespace) -> int:
    """Train what a run file says."""
    path = Path(arguments.run_file).resolve()
    load_pack()
    from lora_kiln.trainer.errors import KilnError  # type: ignore[import-not-found,unused-ignore]
    from lora_kiln.trainer.parallel import (  # type: ignore[import-not-found,unused-ignore]
        Alone,
        Team,
    )

    # Before the host is imported: it takes the device that Accelerate has chosen for this process
    team = Team() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()
    load_host(arguments.base_directory)
    from lora_kiln.nodes.host.headless import train_file  # type: ignore[import-not-found,unused-ignore]

    try:
        output = train_file(path, team)
    except KilnError as error:
        print(f"headless: {error}", file=sys.stderr)
        return 1
    if output is not None:
        print(output)
    return 0


def load_pack() -> None:
    """Make this folder importable as the package lora_kiln."""
    spec = importlib.util.spec_from_file_location(
        PACK, HERE / "__init__.py", submodule_search_locations=[str(HERE)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    sys.path[:] = [
        p for p in sys.path if Path(p or ".").resolve() != HERE
    ]  # its nodes/ would hide the host's
    spec.loader.exec_module(module)


def load_host(base_directory: str | None) -> None:
    """Make ComfyUI's modules importable in this process."""
    sys.path.insert(0, str(HERE))
    from scripts.host_files import get_host
    from scripts.launch_host import prepare

    sys.path.remove(str(HERE))
    host = get_host()
    prepare(host)
    import torch

    sys.path.insert(0, str(host))
    sys.argv = [str(host / "main.py")]
    if base_directory:
        sys.argv += ["--base-directory", str(Path(base_directory).resolve())]
    if not torch.accelerator.is_available():
        sys.argv.append("--cpu")
    import comfy.options
    import utils.install_util  # noqa: F401 - as main.py does, before the host's nodes.py puts comfy/ on the path

    comfy.options.enable_args_parsing()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("train", help="train from an encoded dataset and a model file")
    add.add_argument("run_file", help="run.toml, as every run of the training node leaves it in its folder")
    add.add_argument(
        "--base-directory", help="where ComfyUI's models and user folders lie, if not in ComfyUI's own folder"
    )
    add.set_defaults(run=train)
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
