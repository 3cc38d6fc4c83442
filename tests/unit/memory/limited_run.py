"""A run of a Wan-shaped model in a process that may not take as much memory as the model has.

tests/unit/memory/limited_run.py FOLDER FILE LEVEL DEVICE MEGABYTES(0: as much as there is)

On the CPU the limit is on the data segment: memory that only this process has and may write to (heap, stacks, anonymous
mappings). A file that is mapped to be read is not in it. On CUDA it is on torch's allocator.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from torch import Tensor, nn

import scripts.cpu_torchvision  # noqa: F401 - before peft
from tests.unit.toy import ToyDenoiser, make_config, make_encoded
from trainer.config import MemoryConfig
from trainer.denoiser import Conditioning
from trainer.loop.train import train
from trainer.memory.mapped import map_weights, release_copies
from trainer.memory.shared_clone import SharedClone
from trainer.model_files.safetensors_file import SafetensorsFile

CHANNELS, TEXT = 4, 6  # as make_encoded has them


def wan(dim: int = 512, layers: int = 24) -> nn.Module:
    """diffusers' Wan without weights: 4.2 M parameters a block at width 512."""
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    with init_empty_weights():
        return WanTransformer3DModel(
            num_attention_heads=dim // 128,
            attention_head_dim=128,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=TEXT,
            ffn_dim=4 * dim,
            num_layers=layers,
        ).eval()


class WanDenoiser(ToyDenoiser):
    """That model with a file's weights."""

    latent_channels = CHANNELS

    def __init__(self, network: nn.Module, file: Path, level: str, device: torch.device) -> None:
        super().__init__()
        own = dict(network.state_dict())
        if level == "stream from file":
            weights = map_weights(file, own)
        else:
            with SafetensorsFile(file) as opened:
                weights = {name: opened.read(name) for name in own}
        network.load_state_dict(weights, assign=True)
        self.device = device
        self.network: Any = network.requires_grad_(False)
        self.clone = SharedClone(self.network)

    @contextmanager
    def session(self, whole: bool = True, file: Path | None = None) -> Iterator[str]:
        if whole:
            self.network.to(self.device)
        note = "" if file is None else release_copies(self.network, file).sentence()
        with self.clone.weights():
            yield note

    def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        answer: Tensor = self.module(noisy, timestep, conditioning["cross_attn"], return_dict=False)[0]
        return answer


def bytes_of(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(f"{name}:")).split()[1]) << 10


def free_in_heap() -> int:
    """Bytes that malloc can still give out without asking the system (glibc's mallinfo2, <malloc.h>)."""

    class MallInfo(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in (
                *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
                *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
            )
        ]

    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    return int(libc.mallinfo2().fordblks)


def limit(device: torch.device, megabytes: int) -> None:
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((megabytes << 20) / whole, device)
    else:
        # In half of all runs the heap has 190 MB free by now, below a block in use: they would come on top of the limit
        allowed = bytes_of("VmData") - free_in_heap() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def main(folder: Path, file: Path, level: str, device: torch.device, megabytes: int) -> dict[str, Any]:
    encoded = make_encoded(folder, count=2, shapes=((CHANNELS, 1, 16, 16),))
    config = make_config(steps=4, batch_size=1)
    config = dataclasses.replace(config, memory=MemoryConfig(level=level))
    train(  # imports, threads, and the libraries' own buffers
        ToyDenoiser(), encoded, make_config(steps=1), run_folder=folder / "first"
    )
    network = wan()
    if megabytes:
        limit(device, megabytes)
    before = bytes_of("RssAnon")  # what is no file's
    denoiser = WanDenoiser(network, file, level, device)
    result = train(denoiser, encoded, config, run_folder=folder / "run", model_file=file)
    taken = bytes_of("RssAnon") - before
    return {"losses": result.losses, "taken": taken, "device": denoiser.device.type}


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3],
        torch.device(sys.argv[4]),
        int(sys.argv[5]),
    )
    try:
        found = main(*arguments)
    except (RuntimeError, MemoryError) as error:
        found = {"failed": str(error).splitlines()[0]}
    print(json.dumps(found))
