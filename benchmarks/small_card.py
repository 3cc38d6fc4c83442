"""What a training step takes of a card's memory, counted without the card: a simulation at real shapes.

    python -m benchmarks.small_card --model wan-14b --dtype fp8-scaled --size 512 --level auto --card-gb 12
    python -m benchmarks.small_card --table [--missing]    writes results/small_card.md and .json

The host's own classes, our adapter and the whole placement run forward, backward and an optimizer step on a device that
exists in Python only (tests/pretend_device.py): no values are computed, and every allocation is counted as torch's
allocators round it. What is not simulated: fragmentation, workspaces of matrix multiplications and convolutions, the
CUDA context (about 0.5 GB), other programs, host 0.33's dynamic memory. Not a measurement.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.host_files import ensure_venv, get_host

MODELS = ("wan-1.3b", "wan-14b", "sdxl", "flux", "qwen-image")
DTYPES = ("bf16", "fp8", "fp8-scaled")
LEVELS = ("auto", "resident", "checkpoint activations", "stream blocks", "stream from file")
GB = 10**9
RESULTS = Path(__file__).with_name("results") / "small_card"


@dataclass(frozen=True)
class Case:
    """One simulated run."""

    model: str
    dtype: str  # of the model's file
    width: int
    height: int
    frames: int = 1
    level: str = "auto"
    offload: bool = False  # block inputs, at the levels that recompute
    parts: bool = False  # attention and MLP recomputed apart
    base_precision: str = "as it is"
    rank: int = 32
    batch: int = 1
    nvidia: bool = True  # on other cards the host keeps 40 % of the free memory full of weights
    card_gb: float = 0.0  # 10^9 bytes that are free; 0 for a card of any size


def simulate(cases: list[Case]) -> Iterator[dict[str, Any]]:
    """One after the other in a process of its own; see small_card_worker.py."""
    host = get_host()
    worker = Path(__file__).with_name("small_card_worker.py")
    with tempfile.TemporaryFile("w+") as errors:  # the host prints there
        running = subprocess.Popen(
            [str(ensure_venv(host)), str(worker), json.dumps([asdict(case) for case in cases])],
            cwd=host,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert running.stdout is not None
        for line in running.stdout:
            yield json.loads(line)
        if running.wait():
            errors.seek(0)
            raise SystemExit(f"the simulation ended:\n{errors.read()[-4000:]}")


def size_of(text: str) -> tuple[int, int, int]:
    """ "512", "480x832" or "480x832x81" -> height, width, frames."""
    sides = [int(part) for part in text.split("x")]
    if len(sides) == 1:
        return sides[0], sides[0], 1
    return sides[0], sides[1], sides[2] if len(sides) > 2 else 1


CHECKPOINT, STREAM = LEVELS[2], LEVELS[3]


def case_of(model: str, dtype: str, size: str, **options: Any) -> Case:
    height, width, frames = size_of(size)
    return Case(model, dtype, width, height, frames, **options)


GOALS = (
    case_of("wan-14b", "fp8-scaled", "480x832x81", card_gb=12),
    case_of("wan-14b", "fp8-scaled", "720x1280x81", card_gb=24),
    case_of("wan-14b", "fp8-scaled", "512", card_gb=6),
    case_of("wan-1.3b", "bf16", "480x832x81", card_gb=6),
    case_of("sdxl", "bf16", "1024", card_gb=6),
    case_of("flux", "bf16", "1024", card_gb=8),
)
"""What auto chooses on a card of that size, and what that takes."""

TABLE = (
    *(case_of("wan-14b", "bf16", "512", level=level) for level in LEVELS[1:]),
    case_of("wan-14b", "bf16", "512", level=STREAM, base_precision="fp8"),
    case_of("wan-14b", "fp8-scaled", "480x832x33", level=CHECKPOINT),
    case_of("wan-14b", "fp8-scaled", "480x832x81", level=STREAM),
    case_of("wan-14b", "fp8-scaled", "480x832x81", level=STREAM, offload=True),
    case_of("wan-14b", "fp8-scaled", "480x832x81", level=STREAM, offload=True, nvidia=False, card_gb=24),
    case_of("wan-1.3b", "bf16", "512", level="resident"),
    case_of("wan-1.3b", "bf16", "480x832x33", level="resident"),
    case_of("wan-1.3b", "bf16", "480x832x81", level=CHECKPOINT),
    *(
        case_of(model, "bf16", size, level=level)
        for model in ("sdxl", "flux", "qwen-image")
        for size, level in (("512", "resident"), ("1024", "resident"), ("1024", CHECKPOINT), ("1024", STREAM))
    ),
    case_of("wan-14b", "bf16", "512", level=STREAM, base_precision="nf4"),
    *(case_of("wan-14b", "bf16", "1024", level=level) for level in ("resident", CHECKPOINT, STREAM)),
    case_of("wan-14b", "fp8-scaled", "1024", card_gb=12),
)


def table(rows: list[dict[str, Any]]) -> str:
    """For people: simulated / planned, GB."""
    lines = [
        "# What a training step takes of a card: simulated, not measured",
        "",
        "`python -m benchmarks.small_card --table`, rank 32, batch 1, AdamW; GB = 10^9 bytes, simulated / planned. Not",
        "simulated: fragmentation, workspaces of matrix multiplications and convolutions, the CUDA context, other",
        "programs, ComfyUI's dynamic memory. +o: block inputs in CPU memory; +p: attention and MLP recomputed apart.",
        "",
        "| model | file | size | card | level | device | pinned CPU memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        size = f"{row['height']}x{row['width']}" + (f"x{row['frames']}" if row["frames"] > 1 else "")
        level = row["level"] + (" +o" if row["offload"] else "") + (" +p" if row["parts"] else "")
        level = f"auto: {level}" if row["asked"] == "auto" else level
        base = row["dtype"] + (
            "" if row["base_precision"] == "as it is" else f", {row['base_precision']} base"
        )
        card = f"{row['card_gb']:g}" if row["card_gb"] else ""
        card += "" if row["nvidia"] else " (not NVIDIA)"
        peak, planned, pinned, planned_pinned = (
            f"{row[name] / GB:.2f}"
            for name in (
                "peak_device_bytes",
                "planned_device_bytes",
                "peak_pinned_bytes",
                "planned_pinned_bytes",
            )
        )
        cells = [row["model"], base, size, card, level, f"{peak} / {planned}", f"{pinned} / {planned_pinned}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table(missing: bool) -> None:
    """missing: rows that the file has are kept."""
    file = RESULTS.with_suffix(".json")
    kept = json.loads(file.read_text()) if missing and file.is_file() else []
    cases = [*GOALS, *TABLE]
    found = {index: row for index, case in enumerate(cases) for row in kept if is_of(row, case)}
    wanted = [index for index in range(len(cases)) if index not in found]
    for index, row in zip(wanted, simulate([cases[i] for i in wanted]), strict=True):
        found[index] = row
        print(row["model"], sentence(row), flush=True)
        rows = [found[i] for i in sorted(found)]
        file.write_text(json.dumps(rows, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table(rows))


def is_of(row: dict[str, Any], case: Case) -> bool:
    """Whether a row is that case's; auto has decided three of its fields."""
    asked = asdict(case)
    decided = {"level"} if case.level != "auto" else {"level", "offload", "parts"}
    return row["asked"] == case.level and all(row[k] == v for k, v in asked.items() if k not in decided)


def sentence(found: dict[str, Any]) -> str:
    """For people."""
    parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in found["peak_parts"].items())
    level = found["level"]
    level += " + inputs in CPU memory" if found["offload"] else ""
    level += " + parts apart" if found["parts"] else ""
    return (
        f"{level}: peak "
        f"{found['peak_device_bytes'] / GB:.2f} GB of the device ({parts}), planned "
        f"{found['planned_device_bytes'] / GB:.2f}; pinned "
        f"{found['peak_pinned_bytes'] / GB:.2f}, planned {found['planned_pinned_bytes'] / GB:.2f} (simulated)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="wan-14b")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the model's file")
    parser.add_argument("--size", default="512", help="512, 480x832 or, for clips, 480x832x81")
    parser.add_argument("--level", choices=LEVELS, default="auto")
    parser.add_argument("--offload-block-inputs", action="store_true")
    parser.add_argument("--recompute-parts", action="store_true")
    parser.add_argument("--base-precision", choices=("as it is", "fp8", "nf4"), default="as it is")
    parser.add_argument(
        "--card-gb", type=float, default=0.0, help="10^9 bytes that are free on the card; 0: any number"
    )
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--table", action="store_true", help="simulate every row of the table and write it")
    parser.add_argument(
        "--missing", action="store_true", help="with --table: only rows that its file has not"
    )
    arguments = parser.parse_args()
    if arguments.table:
        write_table(arguments.missing)
        return
    height, width, frames = size_of(arguments.size)
    (found,) = simulate(
        [
            Case(
                model=arguments.model,
                dtype=arguments.dtype,
                width=width,
                height=height,
                frames=frames,
                level=arguments.level,
                offload=arguments.offload_block_inputs,
                parts=arguments.recompute_parts,
                base_precision=arguments.base_precision,
                rank=arguments.rank,
                batch=arguments.batch,
                card_gb=arguments.card_gb,
            )
        ]
    )
    print(sentence(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
