"""Where things lie, and the check that no path leaves the host's folders.

A shared workflow may name any path; only folders that the owner of the machine has opened are read: ComfyUI's input
folder, and those listed as `kiln_datasets` in extra_model_paths.yaml.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ...trainer.dataset.model_marks import ModelMarks
from ...trainer.dataset.names import check_new_name, inside, shown_name
from ...trainer.dataset.places import Places
from ...trainer.errors import KilnError, shortened
from ...trainer.parsers import split_list
from ...trainer.runs.samples import sample_path
from ...trainer.safefile import is_safetensors, write_text

RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")  # see new_run_folder
DATASET_KEY = "kiln_datasets"


def dataset_folder(name: str) -> Path:
    """The folder that a user names: relative to ComfyUI/input, or absolute inside an opened folder.

    Raises:
        KilnError: it lies elsewhere or does not exist.
    """
    base = input_folder()
    opened = _dataset_roots()
    try:
        asked = (base / name.strip().strip('"')).expanduser().resolve()
        exists = asked.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, not encodable, a home that is none
        raise KilnError(
            f"The folder {shown_name(name)} cannot exist ({shortened(str(error), 80)}); choose one under {base}."
        ) from error
    if not any(asked == root or root in asked.parents for root in opened):
        raise KilnError(
            f"The folder {shown_name(name)} lies outside ComfyUI/input; move it there, or open its place by listing it "
            f"as {DATASET_KEY} in extra_model_paths.yaml."
        )
    if not exists:
        raise KilnError(
            f"The folder {shown_name(name)} does not exist under {base}; put your images in a folder there."
        )
    return asked


def may_show(path: Path) -> bool:
    """Whether a picture that a run's files name may be shown: it lies where datasets lie, or in our own store."""
    try:
        real = path.resolve()
    except (OSError, ValueError, RuntimeError):  # as in dataset_folder
        return False
    return any(root in real.parents for root in [*_dataset_roots(), kiln_directory().resolve() / "encoded"])


def input_folder() -> Path:
    """The host's input folder, below which datasets lie."""
    return Path(folder_paths.get_input_directory()).resolve()


def dataset_name(folder: Path) -> str:
    """A dataset's folder as the Load Dataset node names it."""
    base = input_folder()
    return folder.relative_to(base).as_posix() if base in folder.parents else str(folder)


def may_change(folder: Path) -> bool:
    """Whether the page may write there: below ComfyUI/input. Other opened folders are read only."""
    return input_folder() in folder.parents


def control_folders(names: str, dataset: Path) -> tuple[Path, ...]:
    """The folders of control pictures that a user names, in order; a dot is the dataset's own.

    Raises:
        KilnError: one does not exist, or lies outside the host's input folder.
    """
    return tuple(dataset if name == "." else dataset_folder(name) for name in split_list(names))


def new_dataset_folder(name: str) -> Path:
    """The folder below ComfyUI/input for files that are uploaded; it need not exist.

    Raises:
        KilnError: the name is refused, leads elsewhere, or is a file.
    """
    folder = inside(input_folder(), check_new_name(name, "folder name"))
    if folder.exists() and not folder.is_dir():
        raise KilnError(f"{shown_name(name)} is a file; choose another name for the folder.")
    return folder.resolve()


def places() -> Places:
    """The host's folders, by which our files name what lies in them."""
    named = {
        "user": folder_paths.get_user_directory(),
        "input": folder_paths.get_input_directory(),
        "output": folder_paths.get_output_directory(),
        "temp": folder_paths.get_temp_directory(),
        "": folder_paths.base_path,
    }
    return Places({name: Path(folder) for name, folder in named.items()}, _dataset_roots()[1:])


def kiln_directory() -> Path:
    """Our own place under ComfyUI/user: encoded datasets, runs. The leading __ keeps it out of reach of the host's
    HTTP routes for user files."""
    return Path(folder_paths.get_user_directory()) / "__lora_kiln"


def encoded_cache() -> tuple[Path, str]:
    """The folder of encoded items, made when missing, and its id: another one after it has been deleted.

    Raises:
        KilnError: it cannot be written.
    """
    folder = kiln_directory() / "encoded"
    marker = folder / "id"
    if not marker.is_file():
        write_text(marker, secrets.token_hex(8))
    return folder, marker.read_text("utf-8")


def image_store() -> Path:
    """Where images that come from other nodes are kept; part of the encoded cache, deleted with it."""
    return encoded_cache()[0] / "images"


def facts_cache() -> Path:
    """Where what was measured of dataset folders is kept."""
    return kiln_directory() / "scans"


def edit_journals() -> Path:
    """Where the changes that a user made in datasets are kept, so that they can be undone."""
    return kiln_directory() / "edits"


def model_marks() -> ModelMarks:
    """Which captions and fields of all datasets a model wrote."""
    return ModelMarks(kiln_directory() / "by_model.txt")


def mask_sheets() -> Path:
    """Pictures that masks are painted on; the host empties its temp folder when it starts."""
    return Path(folder_paths.get_temp_directory()) / "kiln_masks"


def upload_store() -> Path:
    """Where archives wait until it is decided what becomes of them."""
    return kiln_directory() / "uploads"


def runs_folder() -> Path:
    """The folder that holds the runs' folders."""
    return kiln_directory() / "runs"


def new_run_folder() -> Path:
    """A fresh folder for one run; its name sorts by time."""
    return runs_folder() / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def tensorboard_folder(run_id: str) -> Path:
    """Where the TensorBoard files of a run lie, if it writes any."""
    return kiln_directory() / "tensorboard" / run_id


def shown(path: Path) -> str:
    """A path as a person is told it: below the host's base folder, with forward slashes."""
    try:
        return path.relative_to(folder_paths.base_path).as_posix()
    except ValueError:
        return str(path)


def history_file() -> Path:
    """The database of all runs, see trainer.runs.history."""
    return kiln_directory() / "history.db"


def new_output_path(kind: str, filename_prefix: str) -> Path:
    """The next free name of a .safetensors file under ComfyUI/output/<kind>, which the host also lists for loading.

    Args:
        kind: "loras" or "diffusion_models".

    Raises:
        KilnError: the prefix would leave that folder, or names nothing.
    """
    root = Path(folder_paths.get_output_directory()) / kind
    if not re.split(r"[/\\]", filename_prefix)[-1].strip(" .") or not filename_prefix.isprintable():
        raise KilnError(
            f"filename_prefix {shown_name(filename_prefix)} ends in no name; write for example kiln/my_file, without "
            "a slash behind."
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, str(root))
    except OSError as error:
        raise KilnError(
            f"Cannot write {shown_name(filename_prefix)} in {root} ({error}); check the name, free space and write "
            "permission."
        ) from error
    except Exception as error:  # the host raises a plain Exception
        raise KilnError(
            f"filename_prefix {shown_name(filename_prefix)} leaves ComfyUI/output/{kind}; use a plain name."
        ) from error
    return Path(folder) / f"{name}_{counter:05}_.safetensors"


def new_output_paths(kind: str, filename_prefix: str, parts: Sequence[str]) -> list[Path]:
    """Names of one number for the parts of one thing: "<prefix>_<part>_00003_.safetensors" for each.

    Args and errors: see new_output_path.
    """
    free = [new_output_path(kind, f"{filename_prefix}_{part}") for part in parts]
    number = max(int(path.stem[-6:-1]) for path in free)
    return [path.with_name(f"{path.stem[:-6]}{number:05}_.safetensors") for path in free]


def background_lora_path(run_id: str) -> Path:
    """Where the LoRA of a run in the background is put for loading."""
    return Path(folder_paths.get_output_directory()) / "loras" / f"{run_id}.safetensors"


def sample_file(run_id: str, step: int, place: int) -> Path | None:
    """A picture drawn during a run; None when there is none, or no run has such an id."""
    if not RUN_ID.fullmatch(run_id):
        return None
    path = sample_path(runs_folder() / run_id, step, place)
    return path if path.is_file() else None


def lora_names() -> list[str]:
    """LoRA files that can be loaded. Pickled files are never opened, so only safetensors are listed."""
    return [n for n in folder_paths.get_filename_list("loras") if is_safetensors(n)]


def lora_path(name: str) -> Path:
    """The file behind a listed name.

    Raises:
        KilnError: there is none.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None or not is_safetensors(name):
        raise KilnError(
            f"There is no LoRA file {shown_name(name)} (.safetensors, .sft) in the host's loras folders; put it there, "
            "or choose another."
        )
    return Path(path)


def _dataset_roots() -> list[Path]:
    return [input_folder(), *(Path(p).resolve() for p in _opened_folders())]


def _opened_folders() -> list[str]:
    try:
        return folder_paths.get_folder_paths(DATASET_KEY)
    except KeyError:
        return []
