"""docs/families.md: what is proven of each model family. Written from what families_run.py finds:

    COMFYUI_DIR=... python -m tests.host.families_doc

Rows of families that only another host knows stay as they are.
"""

from __future__ import annotations

from typing import Any

from scripts.host_files import REPO

from .families import CASES, Case
from .in_host import run_in_host

PATH = REPO / "docs" / "families.md"
HEAD = """\
# Model families

What is proven of each family of models, on a small random network made through ComfyUI's own classes, with the
conditioning that ComfyUI's nodes put into the graph for it. `tests/host/test_families.py` measures each row in every
test run, on ComfyUI 0.3.75, and on 0.33 where it is run there:

- three steps at the default settings, without an error and with finite losses;
- our prediction is ComfyUI's own for the same input and the whole conditioning, to 1e-5 (all entries count: reference
  images, first frames, control, guidance, sizes);
- the prediction of an item in a batch is that of the item alone, to 1e-5;
- gradients are the same at every memory level (resident, checkpoint activations, stream blocks, stream from file), to
  1e-5;
- the saved LoRA, loaded by ComfyUI's own loader, has the effect that it had in training, to 1e-5, and no key of it is
  left over.

What is trained is what the graph says. How well a family learns at these settings was measured for Wan 2.1 alone, and
nothing here was measured on a GPU.

**noise levels** is what `auto` means: "shift by size" is `patch, n1, mu1, n2, mu2` as in the run's record, that is
exp(mu) with mu on the line through (n1 tokens, mu1) and (n2, mu2); the sources stand in `trainer/families.py`.

**diffusers** says whether Save LoRA can write the formats diffusers and peft: all trained layers have a name there.
Where diffusers has a pipeline for the model, it loads the file: `tests/host/test_diffusers_names.py` proves it of SD
1.5, SDXL, SD 3.5, Flux, Flux 2, Qwen-Image, Z-Image, HunyuanVideo and LTX-Video, the unit tests of Wan. The format
kohya has the names of sd-scripts and musubi-tuner for these, and for others ComfyUI's with underscores.

Without a table of targets, LoRAs are put on attention and MLP of the blocks; norms, modulation, refiners, text adapters
and guidance embedders are left out, unless asked for.

| model | what is trained | result | noise levels | diffusers | ComfyUI |
| --- | --- | --- | --- | --- | --- |
"""


def line(name: str, case: Case, row: dict[str, Any]) -> str:
    """One row of the table."""
    host = "0.33" if case.only_newer else "0.3.75, 0.33"
    if "refused" in row:
        return f"| {name} | {case.what} | refused: {row['refused']} | | | {host} |"
    noise = row["noise"]
    density = noise["timestep_sampling"].replace("_", "-")
    shift = (
        f"shift by size {noise['shift_by_size']}" if noise["shift_by_size"] else f"shift {noise['shift']:g}"
    )
    if noise["shift"] == 1:
        shift = "no shift"
    diffusers = "yes" if row["diffusers"] else "no"
    return f"| {name} | {case.what} | trains | {density}, {shift} | {diffusers} | {host} |"


def lines_of(text: str) -> dict[str, str]:
    """The rows of the table by name."""
    rows = [each for each in text.splitlines() if each.startswith("| ")][2:]
    return {each.split(" | ")[0][2:]: each for each in rows}


def updated(text: str, figures: dict[str, Any]) -> str:
    """The page with new rows for what was measured."""
    rows = lines_of(text) | {name: line(name, CASES[name], row) for name, row in figures.items()}
    return HEAD + "".join(f"{rows[name]}\n" for name in CASES if name in rows)


if __name__ == "__main__":
    before = PATH.read_text("utf-8") if PATH.is_file() else ""
    PATH.write_text(updated(before, run_in_host("families_run.py", arguments=())), "utf-8")
