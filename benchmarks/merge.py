"""How fast LoRAs are merged into a model file, against copying the file, and how much memory that takes.

    python -m benchmarks.merge [--dtypes bf16 fp8 scaled-fp8] [--blocks 4] [--rank 32] [--rounds 3] [--folder DIR]
                               [--sparse] [--json FILE]

Makes a file with the layers of Wan 14B (0.35 thousand million weights a block; 40 blocks are the whole model) and a
LoRA for its linear layers. Then `cp` and merge take turns, the merge in a fresh process each time, on a new file each
time, both until the bytes are on the disk. The speed is the ratio of the medians. Memory is the peak of the resident
set of the merging process, and what of it is there before it begins (python and torch).

--sparse leaves the weights zero and takes no room on the disk for them: for files that the disk has no room for
twice. They are read and written all the same, by cp too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.model_files.safetensors_file import DTYPES

DIM, FFN = 5120, 13824  # Wan 14B
LINEAR = {
    **{f"{kind}_attn.{part}": (DIM, DIM) for kind in ("self", "cross") for part in "qkvo"},
    "ffn.0": (FFN, DIM),
    "ffn.2": (DIM, FFN),
}
KINDS = {"bf16": "BF16", "fp16": "F16", "fp8": "F8_E4M3", "scaled-fp8": "F8_E4M3"}
SCALE = 2e-4  # of scaled fp8: weights up to 0.09


@dataclass(frozen=True)
class Figures:
    """What one kind of file showed; sizes in bytes."""

    dtype: str
    file_bytes: int
    cp_seconds: list[float]
    merge_seconds: list[float]
    peak_bytes: int
    before_bytes: int

    @property
    def speed(self) -> float:
        """Of cp's."""
        return statistics.median(self.cp_seconds) / statistics.median(self.merge_seconds)


def make_base(path: Path, kind: str, blocks: int, sparse: bool) -> None:
    """A model file whose blocks all hold the same random weights."""
    plan: list[tuple[str, str, tuple[int, ...]]] = []
    for block in range(blocks):
        for layer, shape in LINEAR.items():
            plan.append((f"blocks.{block}.{layer}.weight", KINDS[kind], shape))
            plan.append((f"blocks.{block}.{layer}.bias", "BF16", shape[:1]))
            if kind == "scaled-fp8":
                plan.append((f"blocks.{block}.{layer}.scale_weight", "F32", (1,)))
        plan.append((f"blocks.{block}.modulation", "F32", (1, 6, DIM)))
    header: dict[str, object] = {}
    end = 0
    for name, dtype, shape in plan:
        start, end = end, end + torch.Size(shape).numel() * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    values: dict[tuple[str, tuple[int, ...]], bytes] = {}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if sparse:
            file.truncate(8 + len(text) + end)
        for name, dtype, shape in plan:
            if name.endswith(".scale_weight"):
                file.write(struct.pack("<f", SCALE))
                continue
            if sparse:
                file.seek(torch.Size(shape).numel() * DTYPES[dtype].itemsize, os.SEEK_CUR)
                continue
            if (dtype, shape) not in values:
                weight = torch.randn(shape, generator=torch.Generator().manual_seed(len(values))) * 0.018
                weight /= SCALE if kind == "scaled-fp8" else 1.0
                values[dtype, shape] = weight.to(DTYPES[dtype]).view(torch.uint8).numpy().tobytes()
            file.write(values[dtype, shape])


def make_lora(path: Path, blocks: int, rank: int) -> None:
    """A LoRA for every linear layer, whose update is a hundredth of the weights."""
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for block in range(blocks):
        for layer, (out, inner) in LINEAR.items():
            name = f"diffusion_model.blocks.{block}.{layer}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inner, generator=g) / inner**0.5
            tensors[f"{name}.lora_B.weight"] = (
                torch.randn(out, rank, generator=g) * 0.018 * (inner / rank) ** 0.5 / 100
            )
    save_file(tensors, path)


def warm(base: Path, out: Path) -> None:
    """Have memory for a file of this size at hand: a virtual machine may have given what it did not use back to its
    host, and gets it again at a gigabyte a second, which would be most of what is measured."""
    if base.stat().st_size < 8e9:  # more does not stay in memory anyway
        shutil.copyfile(base, out)
        out.unlink()


def copied(base: Path, out: Path) -> float:
    """Seconds that cp takes, until the copy is on the disk."""
    began = time.perf_counter()
    subprocess.run(["cp", "--sparse=never", base, out], check=True)
    with out.open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - began


def merged(base: Path, lora: Path, out: Path) -> tuple[float, int, int]:
    """Seconds, peak and beginning of the resident set, of a merge in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.merge", "--one", str(base), str(lora), str(out)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told["seconds"], told["peak"], told["before"]


def one(base: Path, lora: Path, out: Path) -> None:
    """What the fresh process does."""
    from trainer.lora_files.read import read_lora
    from trainer.model_files.merge_into_file import WeightedLora, merge_into_file

    def resident() -> int:  # not getrusage's ru_maxrss: a process inherits that from the one that started it
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    warm(base, out)
    before, began = resident(), time.perf_counter()
    merge_into_file(base, out, [WeightedLora(read_lora(lora), 0.85)])
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": resident(), "before": before}))


def measure(kind: str, folder: Path, blocks: int, rank: int, rounds: int, sparse: bool) -> Figures:
    base, lora, out = (folder / f"{name}.safetensors" for name in ("base", "lora", "out"))
    make_base(base, kind, blocks, sparse)
    make_lora(lora, blocks, rank)
    os.sync()
    copies, merges, memory = [], [], []
    for _ in range(rounds):
        warm(base, out)
        copies.append(copied(base, out))
        out.unlink()
        merges.append(merged(base, lora, out))
        out.unlink()
    memory = [peak for _, peak, _ in merges]
    size = base.stat().st_size
    base.unlink()
    return Figures(kind, size, copies, [m[0] for m in merges], max(memory), merges[0][2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtypes", nargs="+", choices=list(KINDS), default=["bf16", "fp8", "scaled-fp8"])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one without")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, type=Path, metavar=("BASE", "LORA", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(*arguments.one)
        return
    found = []
    print(
        f"{'file':>12} {'GB':>6} {'cp s':>7} {'merge s':>8} {'GB/s':>6} {'of cp':>6} {'peak GB':>8} {'before':>7}"
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for kind in arguments.dtypes:
            each = measure(
                kind, Path(folder), arguments.blocks, arguments.rank, arguments.rounds, arguments.sparse
            )
            found.append(each)
            seconds = statistics.median(each.merge_seconds)
            print(
                f"{kind:>12} {each.file_bytes / 1e9:6.2f} {statistics.median(each.cp_seconds):7.2f} {seconds:8.2f} "
                f"{each.file_bytes / 1e9 / seconds:6.2f} {each.speed:6.2f} "
                f"{each.peak_bytes / 1e9:8.2f} {each.before_bytes / 1e9:7.2f}",
                flush=True,
            )
    if arguments.json:
        values = [asdict(each) | {"speed": each.speed, "rank": arguments.rank} for each in found]
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
