"""What stream from file does to the host's own copy of a model's weights; prints JSON.

Run by test_file_memory.py: `python file_memory.py MODEL.safetensors` in the host's folder. The model is a Wan of random
weights, large enough that its memory stands out from everything else.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.model_management
import comfy.utils
import torch
from lora_kiln.nodes.host.memory.frozen_weights import bytes_in_ram, host_weights
from lora_kiln.nodes.host.models.denoiser import HostDenoiser
from lora_kiln.nodes.host.models.fingerprint import model_fingerprint, module_fingerprint
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig, MemoryConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.cpu_tuning import trim_heap  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.placement import Placement  # type: ignore[import-not-found]
from one_step import LATENTS, kept_off_the_device, load, take_step
from torch import Tensor

wan_shape = inprocess.load_file("wan_shape", inprocess.REPO / "benchmarks" / "wan_shape.py")

KEY = "diffusion_model.blocks.1.ffn.0.weight"


def bring_in(model: Any) -> None:
    """As a sampling node does."""
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])


def private() -> int:
    """Bytes of this process that are no file's."""
    gc.collect()
    trim_heap()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("RssAnon:")).split()[1]) << 10


def step(model: Any, file: Path | None, level: str) -> tuple[list[Tensor], str]:
    """The loss and all gradients of a step, and what is said about the model's memory."""
    denoiser = HostDenoiser(model, tuple(LATENTS.shape))
    config = AdapterConfig(rank=4, alpha=4.0, dropout=0.0)
    placement = Placement(denoiser, MemoryConfig(level=level), config, host_weights, file)
    with placement.session():
        adapter = make_adapter(denoiser.module, config, 0, placement.weights)
        return take_step(denoiser, adapter), placement.note


def pins(model: Any, file: Path | None, level: str) -> tuple[int, list[Tensor]]:
    """How many weights the host means to pin where it loads as on a GPU without room, and the step."""
    asked: list[Tensor] = []
    pin = comfy.model_management.pin_memory
    comfy.model_management.pin_memory = asked.append
    try:
        with kept_off_the_device():
            found, _ = step(model, file, level)
    finally:
        comfy.model_management.pin_memory = pin
    return len(asked), found


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) > 1 and all(map(torch.equal, ours, theirs))


def bits(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.model.diffusion_model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def patched(model: Any) -> Any:
    changed = model.clone()
    shape = comfy.utils.get_attr(model.model, KEY).shape
    assert changed.add_patches({KEY: (torch.ones(shape),)}, 0.5) == [KEY]
    return changed


def main(file: Path) -> None:
    wan_shape.write_wan(file, wan_shape.WanShape(512, 2048, 6))
    raw = hashlib.sha256(file.read_bytes()).hexdigest()
    expected, _ = step(load(file), None, "resident")  # also imports and warms up what it needs
    found: dict[str, Any] = {}

    model = load(file)
    bring_in(model)
    values, fingerprint = bits(model), model_fingerprint(model)
    found["size"] = sum(p.nbytes for p in model.model.diffusion_model.parameters())
    found["in ram before"] = bytes_in_ram(model.model.diffusion_model)
    before = private()
    trained, found["note"] = step(model, file, "stream from file")
    found["given back"] = before - private()
    found["in ram after"] = bytes_in_ram(model.model.diffusion_model)
    found["same step"] = same(trained, expected)
    found["same values"] = bits(model) == values and model_fingerprint(model) == fingerprint
    again, found["note again"] = step(model, file, "stream from file")
    found["same again"] = same(again, expected)

    # A clone with patches is loaded and put back, by replacing the weight and in place
    for in_place in (False, True):
        weight = comfy.utils.get_attr(model.model, KEY)
        clone = patched(model)
        clone.weight_inplace_update = in_place
        bring_in(clone)
        now = comfy.utils.get_attr(model.model, KEY)
        found[f"patched, in place {in_place}"] = bits(model) != values and (now is weight) == in_place
        bring_in(model)
        found[f"put back, in place {in_place}"] = bits(model) == values

    # Its patches are on when training begins: they are taken off first, as always
    fresh = load(file)
    bring_in(patched(fresh))
    trained, found["note of a patched one"] = step(fresh, file, "stream from file")
    found["same from a patched one"] = same(trained, expected)
    found["file untouched"] = hashlib.sha256(file.read_bytes()).hexdigest() == raw

    # On a GPU without room: what the host pins would be a copy again
    found["pinned for blocks"], streamed = pins(load(file), None, "stream blocks")
    found["pinned for the file"], trained = pins(load(file), file, "stream from file")
    found["same kept off"] = same(trained, streamed)

    # What cannot be released stays as it is
    half = load(file, dtype=torch.float16)
    values = bits(half)
    _, found["note in half"] = step(half, file, "stream from file")
    found["half untouched"] = bits(half) == values

    # Samples of a tensor as large as the 14B's feed-forward lie inside it
    large = torch.nn.Module()
    large.register_buffer("weight", torch.zeros(1).expand(5120 * 13824))
    found["large fingerprint"] = bool(module_fingerprint(large))

    os.unlink(file)
    found["same without the file"] = bits(model) == bits(fresh)
    print(json.dumps(found))


with tempfile.TemporaryDirectory() as folder:
    main(Path(folder) / "wan.safetensors")
