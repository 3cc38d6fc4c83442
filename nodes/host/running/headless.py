"""Training without a server: from a run.toml, with the same calls as the training node makes."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import comfy.sd
import torch

import nodes

from ....trainer.dataset.places import Places
from ....trainer.errors import KilnError
from ....trainer.events import Controls
from ....trainer.loop.distributed import ProcessGroup
from ....trainer.report.console import ConsoleListener
from ....trainer.runs.job import Job
from ....trainer.runs.run import LORA
from ....trainer.runs.runfile import LEFT_OUT, RunFile, read_dataset, read_run_file
from .. import paths
from ..models.fingerprint import model_fingerprint
from ..models.source import TEXT_LOADERS
from ..models.text_encoder import HostTextEncoder, text_fingerprint
from .train_run import train_run


def train_file(path: Path, group: ProcessGroup) -> Path | None:
    """Train what a run.toml says; returns the LoRA's path, or None in a process that is not the main one.

    Ctrl-C and SIGTERM stop at the next step boundary, with a checkpoint.

    Raises:
        KilnError: the file, the model or the dataset is not what it should be, the run was stopped before its first
            step, or see trainer.loop.train.
    """
    run_file = read_run_file(path)
    encoded = read_dataset(path.parent / run_file.dataset, _places(path.parent))
    if run_file.text_encoder and LEFT_OUT in encoded.remarks:
        raise KilnError(
            "The captions are not in dataset.json, for the run kept no metadata (embed_metadata off, or "
            "--disable-metadata), and the text encoder, which it trains too, reads them: train it from its graph again."
        )
    with torch.inference_mode():  # as the host's nodes run
        model = load_model(run_file, path.parent)
        clip = load_text_encoder(run_file) if run_file.text_encoder else None
    text_encoder = None
    if clip is not None:
        device, source = torch.device(model.load_device), run_file.text_encoder
        text_encoder = HostTextEncoder(clip, device, encoded.prompt_syntax, source)

    def work(controls: Controls) -> Any:
        return train_run(
            model,
            encoded,
            run_file.config,
            resume=run_file.resume,
            source=_with_whole_path(run_file.model, path.parent),
            controls=controls,
            listeners=[ConsoleListener()] if group.is_main else [],
            group=group,
            text_encoder=text_encoder,
        )

    job = Job(work)
    _stop_when_asked(job.controls)
    job.start()
    job.wait()
    run = job.result()
    if not group.is_main:
        return None
    if not run.losses:
        raise KilnError("The run was stopped before its first step, so no LoRA was written; start it again.")
    print("\n".join([run.sentence(), *run.advice]), file=sys.stderr)
    output = path.parent / run_file.output
    written = run.folder / LORA
    if output.parent == run.folder and written.is_file():
        written.replace(output)
    else:
        _copy(run, output)
    return output


def _copy(run: Any, output: Path) -> None:
    from ....trainer.lora_files.metadata import shareable
    from ....trainer.lora_files.save import save_lora

    save_lora(output, shareable(run.lora))


def _places(folder: Path) -> Places:
    """The host's folders, with the user folder that the run file lies in: a server may have had another one."""
    found = paths.places()
    for parent in folder.parents:
        if parent.name == paths.kiln_directory().name:
            return replace(found, named={**found.named, "user": parent.parent})
    return found


def _path_of(file: str, folder: Path) -> Path:
    """Of a model that a run file names by its path: relative to the run file, or below the host's folders as the run
    files of runs have it."""
    path = (folder / file).resolve()
    return path if path.is_file() else paths.places().found(file)


def _with_whole_path(source: dict[str, str], folder: Path) -> dict[str, str]:
    """How the model is loaded; a path is not relative to the run file any more."""
    if source.get("loader") or not source.get("file"):
        return source
    return {**source, "file": str(_path_of(source["file"], folder))}


def load_model(run_file: RunFile, folder: Path) -> Any:
    """The MODEL that the file names: by one of the host's loaders, or a path to a diffusion model.

    Raises:
        KilnError: the graph's model cannot be made again from a file, the file is not there, or it is another model.
    """
    loader, file = run_file.model.get("loader", ""), run_file.model.get("file", "")
    path = _path_of(file, folder) if file else folder
    if not loader and not path.is_file():
        raise KilnError(
            "The run file names no model: its graph changed the model between the loader and the trainer. Write file = "
            "'path/to/model.safetensors' into [model]."
        )
    try:
        if not loader:
            model = comfy.sd.load_diffusion_model(str(path))
        elif loader == "UNETLoader":
            dtype = run_file.model.get("weight_dtype", "default")
            (model,) = nodes.UNETLoader().load_unet(file, dtype)
        else:
            model = nodes.CheckpointLoaderSimple().load_checkpoint(file)[0]
    except Exception as error:  # the host raises plain errors of many kinds
        raise KilnError(
            f"The model {file!r} cannot be loaded ({error}); put it into the host's model folders or write its path."
        ) from error
    expected = run_file.model.get("fingerprint", "")
    if expected and model_fingerprint(model) != expected:
        raise KilnError(
            f"The model {file!r} is not the one that the run was exported with; load that one, or take fingerprint "
            "out of the run file to train this one."
        )
    return model


def _stop_when_asked(controls: Controls) -> None:
    """Ctrl-C, and what systems send that end a job, stop the run after its step; a second one ends at once."""
    numbers = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]

    def stop(number: int, frame: FrameType | None) -> None:
        print("\nstopping after this step (again to end at once) ...", file=sys.stderr)
        controls.stop()
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, stop)


def load_text_encoder(run_file: RunFile) -> Any:
    """The CLIP that the file names, by one of the host's loaders.

    Raises:
        KilnError: the graph's CLIP cannot be made again from a file, the file is not there, or it is another one.
    """
    values = dict(run_file.text_encoder)
    loader, expected = values.pop("loader", ""), values.pop("fingerprint", "")
    if loader not in TEXT_LOADERS:
        raise KilnError(
            "The run file names no text encoder: its graph changed the CLIP between the loader and the trainer. "
            "Connect the loader's own CLIP and export the run again."
        )
    try:
        node = nodes.NODE_CLASS_MAPPINGS[loader]
        clip = getattr(node(), node.FUNCTION)(**values)[TEXT_LOADERS[loader]]
    except Exception as error:  # the host raises plain errors of many kinds
        raise KilnError(
            f"The text encoder of the run file cannot be loaded ({error}); put it into the host's model folders."
        ) from error
    if expected and text_fingerprint(clip) != expected:
        raise KilnError(
            "The text encoder of the run file is not the one that the run was exported with; load that one."
        )
    return clip
