"""The shell's door to the engine.

    python headless.py train run.toml            (or: accelerate launch headless.py train run.toml)
    python headless.py info FILE [--json]
    python headless.py convert FILE OUT --format kohya
    python headless.py merge A.safetensors:0.8 B.safetensors:0.5 --out OUT [--method ties --rank 32]
    python headless.py merge A.safetensors:0.85 --base MODEL.safetensors --out MERGED.safetensors
    python headless.py resize FILE OUT --rank 16 [--energy 0.95]

`train` uses ComfyUI's library, found as scripts/host_files.py finds it (COMFYUI_DIR, the ComfyUI that this pack lies
in, or a fetched one); no server is started. The other commands need no ComfyUI. A peft adapter is named by its
folder. An existing file is never replaced without --force.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.lora_files.lora_weights import LoraWeights

PACK = "lora_kiln"
NEEDED = ("torch", "numpy", "safetensors", "diffusers", "peft", "yaml", "PIL")  # what requirements.txt brings
HERE = Path(__file__).resolve().parent


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


def engine(name: str) -> Any:
    """A module of trainer/, imported when a command needs it."""
    if PACK not in sys.modules:
        load_pack()
    return importlib.import_module(f"{PACK}.trainer.{name}")


def train(arguments: argparse.Namespace) -> str:
    """Train what a run file says."""
    path = Path(arguments.run_file).resolve()
    engine("errors")  # loads the pack
    from lora_kiln.trainer.loop.distributed import AccelerateGroup, ProcessGroup

    # Before the host is imported: it takes the device that Accelerate has chosen for this process
    group = AccelerateGroup() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ProcessGroup()
    load_host(arguments.base_directory)
    from lora_kiln.nodes.host.running.headless import train_file  # type: ignore[import-not-found,unused-ignore]

    output = train_file(path, group)
    return "" if output is None else str(output)


def info(arguments: argparse.Namespace) -> str:
    describe = engine("lora_files.describe")
    found = describe.describe(arguments.file)
    return json.dumps(found, indent=2) if arguments.json else describe.as_text(found)


def convert(arguments: argparse.Namespace) -> str:
    names = None
    if arguments.model is not None:
        with engine("model_files.safetensors_file").SafetensorsFile(arguments.model) as model:
            names = engine("model_files.model_keys").layer_names(model)
    lora = engine("lora_files.read").read_lora(arguments.file, names)
    return _save(lora, arguments)


def resize(arguments: argparse.Namespace) -> str:
    lora = engine("lora_files.read").read_lora(arguments.file)
    smaller, sentence = engine("lora_files.resize").resize(lora, arguments.rank, arguments.energy)
    return f"{_save(smaller, arguments)}\n{sentence}"


def merge(arguments: argparse.Namespace) -> str:
    _check_merge(arguments)
    read = engine("lora_files.read").read_lora
    pairs = [(path, weight, read(path)) for path, weight in map(_weighted, arguments.loras)]
    if arguments.base is not None:
        stream, out = engine("model_files.merge_into_file"), _free(arguments.out, arguments.force)
        loras = [stream.WeightedLora(lora, weight, path.name) for path, weight, lora in pairs]
        layout = "diffusers" if arguments.format == "diffusers" else "comfyui"
        sentence = stream.merge_into_file(
            arguments.base,
            out,
            loras,
            dtype=arguments.model_dtype,
            layout=layout,
            pipeline=arguments.pipeline,
            tick=_percent,
        )
        return f"{out}\n{sentence}"
    merged, sentence = engine("lora_files.merge").merge_loras(
        [lora for _, _, lora in pairs],
        [weight for _, weight, _ in pairs],
        arguments.method,
        rank=arguments.rank,
        density=arguments.density,
        seed=arguments.seed,
    )
    return f"{_save(merged, arguments)}\n{sentence}"


def _check_merge(arguments: argparse.Namespace) -> None:
    """Options that would do nothing."""
    error = engine("errors").KilnError
    if arguments.base is not None and arguments.format in ("kohya", "peft"):
        raise error(
            f"--format {arguments.format} is one of LoRA files; with --base leave it out, or say --format diffusers."
        )
    if arguments.pipeline is not None and (arguments.base is None or arguments.format != "diffusers"):
        raise error("--pipeline completes a merged model's folder; say --base and --format diffusers too.")


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


def _save(lora: LoraWeights, arguments: argparse.Namespace) -> str:
    save, out = engine("lora_files.save"), arguments.out
    if not engine("safefile").is_safetensors(out.name):  # "my.v2" is a name without an ending
        out = out.with_name(f"{out.name}.safetensors")
    _free(out, arguments.force)
    if arguments.format == "peft":
        _free(out.with_suffix(""), arguments.force)
    lora = engine("lora_files.metadata").shareable(lora)
    return str(save.save_lora(out, lora, format=arguments.format, dtype=arguments.dtype))


def _free(path: Path, force: bool) -> Path:
    if os.path.lexists(path) and not force:
        raise engine("errors").KilnError(f"{path} exists; choose another name, or say --force to replace it.")
    return path


def _weighted(text: str) -> tuple[Path, float]:
    """ "a.safetensors:0.8" -> its path and 0.8; without a number 1. A drive letter's colon is no weight."""
    name, colon, weight = text.rpartition(":")
    try:
        return (Path(name), float(weight)) if colon and name else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def _percent(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{100 * done / max(total, 1):3.0f} %",
            end="\n" if done == total else "",
            file=sys.stderr,
            flush=True,
        )


def _output(parser: argparse.ArgumentParser, *, named: bool) -> None:
    if named:
        parser.add_argument("--out", type=Path, required=True, help="the file to write; for peft a folder")
    else:
        parser.add_argument("out", type=Path, help="the file to write; for peft a folder")
    parser.add_argument("--format", choices=["comfyui", "kohya", "diffusers", "peft"], default="comfyui")
    parser.add_argument("--dtype", choices=["keep", "fp32", "bf16", "fp16"], default="keep")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def parser() -> argparse.ArgumentParser:
    """The command line; a command's function is its default `run`."""
    top = argparse.ArgumentParser(description="LoRA Kiln without ComfyUI.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    each = commands.add_parser("train", help="train what a run.toml says; every run leaves one in its folder")
    each.add_argument("run_file", help="run.toml")
    each.add_argument(
        "--base-directory", help="where ComfyUI's models and user folders lie, if not in ComfyUI's own folder"
    )
    each.set_defaults(run=train)
    each = commands.add_parser(
        "info", help="what a LoRA is: format, family, rank, alpha, layers, norms, training"
    )
    each.add_argument("file", type=Path)
    each.add_argument("--json", action="store_true")
    each.set_defaults(run=info)
    each = commands.add_parser("convert", help="a LoRA in other key names")
    each.add_argument("file", type=Path)
    each.add_argument("--model", type=Path, help="the model's file: tells layers apart that are not Wan's")
    _output(each, named=False)
    each.set_defaults(run=convert)
    each = commands.add_parser("merge", help="LoRAs into one, or into a model's file (--base)")
    each.add_argument("loras", nargs="+", metavar="FILE[:WEIGHT]")
    each.add_argument(
        "--base", type=Path, help="a model's .safetensors file, read and written tensor by tensor"
    )
    each.add_argument(
        "--pipeline",
        type=Path,
        help="with --base and --format diffusers: a pipeline folder whose vae, text encoder and tokenizer complete it",
    )
    each.add_argument(
        "--model-dtype", choices=["base", "fp32", "bf16", "fp16"], default="base", help="with --base"
    )
    each.add_argument(
        "--method",
        default="exact",
        help="exact svd task_arithmetic ties dare_linear dare_ties magnitude_prune",
    )
    each.add_argument("--rank", type=int, default=0, help="of the result; 0: the sum of the ranks")
    each.add_argument(
        "--density", type=float, default=0.5, help="share of values kept by ties, dare, magnitude_prune"
    )
    each.add_argument("--seed", type=int, default=0, help="of dare's draws")
    _output(each, named=True)
    each.set_defaults(run=merge)
    each = commands.add_parser("resize", help="a LoRA of another rank")
    each.add_argument("file", type=Path)
    each.add_argument("--rank", type=int, default=32, help="the new rank; with --energy the most")
    each.add_argument("--energy", type=float, help="share 0-1 of each layer's energy to keep")
    _output(each, named=False)
    each.set_defaults(run=resize)
    return top


def main(words: list[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    error = engine("errors").KilnError
    try:
        text = arguments.run(arguments)
    except error as problem:
        print(f"headless: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("headless: stopped", file=sys.stderr)
        return 130
    except ModuleNotFoundError as problem:
        if problem.name not in NEEDED:
            raise
        cure = "run it with ComfyUI's Python, after pip install -r requirements.txt"
        print(f"headless: {sys.executable} has no package {problem.name}; {cure}.", file=sys.stderr)
        return 1
    if text:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
