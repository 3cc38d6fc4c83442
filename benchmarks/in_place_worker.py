"""The contestants of in_place.py: `python in_place_worker.py ROUNDS`, in the host's folder; prints JSON."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_process import enter_host

ROUNDS = int(sys.argv[1])
output, sys.stdout = sys.stdout, sys.stderr  # the host prints
enter_host("cpu")

import comfyui_version
import families
import peft
import torch
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.peft_config import lora_config  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.targets import choose_targets  # type: ignore[import-not-found]
from lora_kiln.trainer.config import AdapterConfig  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.copy_on_write import WriteCheck  # type: ignore[import-not-found]
from tiny_models import make_model
from torch import Tensor

WIDTH, SIDE, TEXT, RANK = 768, 32, 128, 16
DIMS = {
    **families.FLUX,
    **{"vec_in_dim": 768, "context_in_dim": 768, "hidden_size": WIDTH, "mlp_ratio": 4.0},
    **{"num_heads": 12, "depth": 1, "depth_single_blocks": 4, "axes_dim": [16, 24, 24]},
}
CONFIG = AdapterConfig(rank=RANK, alpha=RANK, dropout=0.0)


def main() -> None:
    case = families.Case(config="Flux", latent=(16, SIDE, SIDE), dims=DIMS, conditioning=families._pooled)
    model = make_model(case)
    draw = families.Draw(1)
    noisy, timestep = draw(1, 16, SIDE, SIDE), torch.tensor([0.5])
    conditioning = {"c_crossattn": draw(1, TEXT, 768), "y": draw(1, 768), "guidance": torch.tensor([1.0])}
    contestants = {"floor": Floor, "ours": Ours, "peft": Peft}
    made = {name: kind(model, noisy, timestep, conditioning) for name, kind in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(ROUNDS + 2):
        for name, contestant in made.items():
            started = time.perf_counter()
            contestant.step()
            if turn >= 2:  # before that kernels warm up, and it is found out that the network writes in place
                seconds[name].append(time.perf_counter() - started)
    ours, theirs = made["ours"].gradients(), made["peft"].gradients()
    error = max(float((ours[k] - theirs[k]).norm() / theirs[k].norm()) for k in theirs)
    found = {
        "host": comfyui_version.__version__,
        "parameters": sum(p.numel() for p in model.model.diffusion_model.parameters()),
        "tokens": SIDE * SIDE // 4 + TEXT,
        "copies": made["ours"].copies,
        "error": error,
        "seconds": seconds,
    }
    print(json.dumps(found), file=output)


class Contestant:
    """A denoiser of its own; its session stays open."""

    def __init__(self, model: Any, noisy: Tensor, timestep: Tensor, conditioning: dict[str, Tensor]) -> None:
        self.denoiser = HostDenoiser(model, tuple(noisy.shape))
        self.inputs = (noisy, timestep, conditioning)
        self.session = self.denoiser.session()
        self.session.__enter__()
        self.prepare()

    def prepare(self) -> None:
        """Put the adapter in."""

    def step(self) -> None:
        """Forward and backward."""
        for p in self.parameters().values():
            p.grad = None
        self.loss().backward()

    def loss(self) -> Tensor:
        noisy, timestep, conditioning = self.inputs
        answer: Tensor = self.denoiser.forward(noisy, timestep, dict(conditioning))
        return answer.square().mean()

    def parameters(self) -> dict[str, Tensor]:
        return {}

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.parameters().items() if p.grad is not None}


class Floor(Contestant):
    def step(self) -> None:
        with torch.no_grad():
            self.loss()
            self.loss()


class Ours(Contestant):
    copies = 0

    def prepare(self) -> None:
        self.adapter = make_adapter(self.denoiser.module, CONFIG, 0, host_weights)
        self.adapter.load_state_dict(start(self.adapter.state_dict()))

    def step(self) -> None:
        super().step()
        check: WriteCheck = self.denoiser._writes
        self.copies = max([self.copies, *(each.copies for each in check._last.values())])

    def parameters(self) -> dict[str, Tensor]:
        pairs = {name: layer.matrices for name, layer in self.adapter.layers.items()}
        return {
            f"{name}.lora_{x}.weight": m
            for name, pair in pairs.items()
            for x, m in zip("AB", pair, strict=True)
        }


class Peft(Contestant):
    def prepare(self) -> None:
        module = self.denoiser.module
        peft.inject_adapter_in_model(lora_config(CONFIG, choose_targets(module, "")), module, "default")
        found = {k.replace(".default", ""): p for k, p in module.named_parameters() if "lora_" in k}
        values = start({k: p.detach() for k, p in found.items()})
        for name, parameter in found.items():
            parameter.data.copy_(values[name])
        self._found = found
        self.denoiser._writes = NoCure()

    def step(self) -> None:
        for p in self.parameters().values():
            p.grad = None
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            self.loss().backward()

    def parameters(self) -> dict[str, Tensor]:
        return dict(self._found)


class NoCure:
    """Nothing: the cure is around forward and backward."""

    @contextmanager
    def forward(self, module: Any) -> Any:
        yield


def start(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values for both, none zero."""
    draws = torch.Generator().manual_seed(2)
    return {k: 0.05 * torch.randn(state[k].shape, generator=draws) for k in sorted(state)}


main()
