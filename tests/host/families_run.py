"""Every family of families.py through training, saving and the host's own sampling call; prints JSON.

Run by test_families.py in the host's folder: `python families_run.py [NAME ...]`. Per family, either "refused" with the
sentence, or what was found of each of ASPECTS: a relative error, or the text of an exception.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

NAMES = sys.argv[1:]
inprocess.start()

import comfy.model_management
import comfy.model_patcher
import comfy.nested_tensor
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from families import CASES, Case, Draw
from lora_kiln.nodes.host.memory.frozen_weights import host_weights  # type: ignore[import-not-found]
from lora_kiln.nodes.host.models.denoiser import HostDenoiser  # type: ignore[import-not-found]
from lora_kiln.trainer.adapter.inject import make_adapter  # type: ignore[import-not-found]
from lora_kiln.trainer.config import (  # type: ignore[import-not-found]
    AdapterConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from lora_kiln.trainer.dataset.batches import ItemStore, SampleDraw  # type: ignore[import-not-found]
from lora_kiln.trainer.dataset.from_graph import encoded_from_latents  # type: ignore[import-not-found]
from lora_kiln.trainer.errors import KilnError  # type: ignore[import-not-found]
from lora_kiln.trainer.loop import objective  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.prefetch import conditioning_batches, keep_given_parts  # type: ignore[import-not-found]
from lora_kiln.trainer.loop.train import train  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.convert import convert_keys  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.export import (  # type: ignore[import-not-found]
    export_adapter,
    without_untouched,
)
from lora_kiln.trainer.lora_files.keys import PREFIX as OURS  # type: ignore[import-not-found]
from lora_kiln.trainer.lora_files.save import save_lora  # type: ignore[import-not-found]
from lora_kiln.trainer.memory.placement import Placement  # type: ignore[import-not-found]
from lora_kiln.trainer.noise_defaults import resolve  # type: ignore[import-not-found]
from safetensors.torch import save_file
from tiny_models import PREFIX, make_model
from torch import Tensor

LEVELS = ("checkpoint activations", "stream blocks", "stream from file")
ADAPTER = AdapterConfig(rank=4, alpha=4.0, dropout=0.0)
ALL = (0, 1, 2)  # items
CPU = torch.device("cpu")


class Run:
    """One family: its model, its items as they come from a graph and as they are trained on."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.adapter = replace(ADAPTER, conv_rank=case.conv_rank)
        draw = Draw(5)
        rows = (
            *case.rows,
            case.rows[0],
        )  # the first and the last are one batch, the others where the host has it so
        self.entries = [case.conditioning(draw, n) for n in rows]
        self.samples = [draw(1, *case.latent) for _ in rows]
        if case.config == "LTXAV":
            self.samples = [comfy.nested_tensor.NestedTensor((s, s[:, :8, :, :, 0])) for s in self.samples]
        self.dataset = encoded_from_latents(
            [self.latent(s) for s in self.samples], [[e] for e in self.entries], folder / "cache"
        )
        self.model = make_model(case)
        self.denoiser = self.new_denoiser()
        self.layers: list[str] = []  # that get an adapter
        self.batches: list[tuple[int, ...]] = []
        self.trained: list[str] = []  # of these, the ones that three steps have changed
        self.in_file: list[str] = []
        self.left_out: list[str] = []
        self.batch = ItemStore(self.dataset.items).load([SampleDraw(i, 0, i) for i in ALL])
        latents = self.denoiser.prepare_latents(self.batch.latents)
        noise = torch.stack([draw(*case.latent) for _ in rows])
        self.latents = latents
        noised = objective.add_noise(self.denoiser, latents, noise, torch.tensor([0.35, 0.75, 0.5]))
        self.noised = keep_given_parts(self.denoiser, self.batch, latents, noised)
        self.objective = resolve(ObjectiveConfig(), self.denoiser, None)

    def latent(self, samples: Any) -> dict[str, Any]:
        """A LATENT; with a noise_mask that is 0 where it is given."""
        if not self.case.first_frame:
            return {"samples": samples}
        mask = torch.ones_like(samples[:, :1])
        mask[:, :, :1] = 0
        return {"samples": samples, "noise_mask": mask}

    def new_denoiser(self) -> Any:
        return HostDenoiser(self.model, (3, *self.case.latent))

    def forward(self, denoiser: Any, items: tuple[int, ...] = ALL) -> Tensor:
        """Our predictions of these items, as training makes them."""
        chosen = list(items)
        batch = type(self.batch)(
            latents=self.batch.latents[chosen],
            items=tuple(self.batch.items[i] for i in chosen),
            weight=self.batch.weight[chosen],
        )
        answers: dict[int, Tensor] = {}
        for part in conditioning_batches(denoiser, batch.items, self.latents[chosen], self.objective):
            own = [chosen[i] for i in part.items]
            found = denoiser.forward(self.noised.noisy[own], self.noised.timestep[own], part.conditioning)
            answers |= dict(zip(own, found, strict=True))
        return torch.stack([answers[i] for i in chosen])

    @torch.inference_mode()
    def host_prediction(self, model: Any, item: int) -> Tensor:
        """What the network answers when the host samples from this input with the whole conditioning."""
        base = model.model
        comfy.model_management.load_models_gpu([model])
        model.pre_run()
        sampling = base.model_sampling
        noisy, timestep = self.noised.noisy[item : item + 1], self.noised.timestep[item : item + 1]
        if self.denoiser.prediction == "flow":
            sigma = self.noised.level[item : item + 1]
            if self.case.config.startswith("Cosmos"):
                sigma = sigma / (1 - sigma)  # its timestep is sigma / (sigma + 1)
        else:
            sigma = sampling.sigmas[timestep.long()]
        x = noisy / sampling.calculate_input(sigma, torch.ones_like(noisy))
        latents, mask = torch.zeros_like(x), None
        if self.case.first_frame:
            latents, mask = self.latents[item : item + 1], torch.ones_like(x[:, :1])
            mask[:, :, :1] = 0
            x = x * mask + latents * (1 - mask)
        conds = {"positive": comfy.sampler_helpers.convert_cond([self.entries[item]])}
        conds = comfy.samplers.process_conds(
            base, x, conds, CPU, latent_image=latents, denoise_mask=mask, seed=0, latent_shapes=[x.shape]
        )
        sampling.calculate_denoised = lambda sigma, output, noisy: output
        try:
            (answer,) = comfy.samplers.calc_cond_batch(
                base, [conds["positive"]], x, sigma, dict(model.model_options)
            )
        finally:
            del sampling.calculate_denoised
        return answer

    # Aspects

    def trains(self) -> float:
        """Three steps at the defaults; 0 where all is well."""
        config = TrainConfig(
            steps=3,
            batch_size=3,
            adapter=AdapterConfig(rank=4, alpha=4.0, conv_rank=self.case.conv_rank),
            memory=MemoryConfig(level="resident"),
            optimizer=OptimizerConfig(learning_rate=1e-3, optimizer="adamw"),
        )
        done = train(
            self.new_denoiser(), self.dataset, config, run_folder=self.folder / "run", weights=host_weights
        )
        moved = [k for k, t in done.adapter.items() if k.endswith("lora_B.weight") and t.abs().sum()]
        self.trained = sorted(k.removesuffix(".lora_B.weight") for k in moved)
        file, self.left_out = without_untouched(export_adapter(done.adapter, config.adapter))
        self.in_file = sorted(
            k.removeprefix(OURS).removesuffix(".lora_B.weight") for k in file if "lora_B" in k
        )
        return 0.0 if all(map(_finite, done.losses)) and len(done.losses) == 3 else 1.0

    def prediction(self) -> float:
        with self.denoiser.session(), torch.no_grad():
            ours = [self.forward(self.denoiser, (i,)) for i in ALL]
        return max(error(o, self.host_prediction(self.model, i)) for i, o in enumerate(ours))

    def batch_of_all(self) -> float:
        with self.denoiser.session(), torch.no_grad():
            parts = conditioning_batches(self.denoiser, self.batch.items, self.latents, self.objective)
            self.batches = [part.items for part in parts]
            together = self.forward(self.denoiser)
            alone = [self.forward(self.denoiser, (i,))[0] for i in ALL]
        return max(error(a, b) for a, b in zip(together, alone, strict=True))

    def gradients(self, level: str, file: Path | None = None) -> list[Tensor]:
        """Of two steps alike: in the first it is found out whether the network writes in place."""
        denoiser = self.new_denoiser()
        placement = Placement(denoiser, MemoryConfig(level=level), self.adapter, host_weights, file)
        found: list[Tensor] = []
        with placement.session():
            adapter = random_adapter(denoiser, placement.weights, self.adapter)
            self.layers = sorted([*adapter.layers, *adapter.convolutions])
            for _ in range(2):
                answer = self.forward(denoiser)
                objective.loss_per_item(answer, self.noised.target).mean().backward()
                for p in adapter.parameters():
                    found.append(torch.zeros_like(p) if p.grad is None else p.grad)
                    p.grad = None
        return found

    def levels(self) -> float:
        network = self.model.model.diffusion_model
        expected = self.gradients("resident")
        assert any(t.abs().sum() for t in expected)
        file = self.folder / "model.safetensors"
        save_file({PREFIX + k: v.clone().contiguous() for k, v in sorted(network.state_dict().items())}, file)
        worst = 0.0
        for level in LEVELS:
            found = self.gradients(level, file)
            worst = max(worst, *(error(a, b) for a, b in zip(found, expected, strict=True)))
        return worst

    def has_diffusers_names(self) -> bool:
        lora = {}
        for layer in self.layers:
            weight = self.model.model.diffusion_model.get_submodule(layer).weight
            lora[f"{OURS}{layer}.lora_A.weight"] = torch.zeros(1, *weight.shape[1:])
            lora[f"{OURS}{layer}.lora_B.weight"] = torch.zeros(len(weight), 1, *[1] * (weight.ndim - 2))
        try:
            convert_keys(lora, "diffusers")
        except KilnError:
            return False
        return True

    def saved(self) -> float:
        """Our answer with an adapter, against the host's with the saved file on; and switched off, without it."""
        denoiser = self.new_denoiser()
        with denoiser.session(), torch.no_grad():
            adapter = random_adapter(denoiser, host_weights, self.adapter)
            ours = [self.forward(denoiser, (i,)) for i in ALL]
            with adapter.switched_off():
                without = [self.forward(denoiser, (i,)) for i in ALL]
        path = save_lora(self.folder / "lora.safetensors", export_adapter(adapter.state_dict(), self.adapter))
        lora = comfy.utils.load_torch_file(str(path), safe_load=True)
        with warnings_of_host() as said:
            patched, _ = comfy.sd.load_lora_for_models(self.model, None, lora, 1.0, 0.0)
        assert not said, f"the host's loader says: {said[0]}"
        with torch.no_grad():
            plain = [self.host_prediction(self.model, i) for i in ALL]
            theirs = [self.host_prediction(patched, i) for i in ALL]
        assert all(error(p, t) > 1e-3 for p, t in zip(plain, theirs, strict=True)), "the file has no effect"
        pairs = zip((*ours, *without), (*theirs, *plain), strict=True)
        return max(error(o, t) for o, t in pairs)


ASPECTS: dict[str, Callable[[Run], float]] = {
    "trains": Run.trains,
    "prediction": Run.prediction,
    "batch": Run.batch_of_all,
    "levels": Run.levels,
    "saved": Run.saved,
}


def random_adapter(denoiser: Any, weights: Any, config: Any) -> Any:
    adapter = make_adapter(denoiser.module, config, 0, weights)
    draws = torch.Generator().manual_seed(1)
    adapter.load_state_dict(
        {k: 0.1 * torch.randn(v.shape, generator=draws) for k, v in adapter.state_dict().items()}
    )
    return adapter


class warnings_of_host:
    """What is logged as a warning or worse meanwhile."""

    def __enter__(self) -> list[str]:
        said: list[str] = []
        self._handler = logging.Handler(logging.WARNING)
        self._handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger().addHandler(self._handler)
        return said

    def __exit__(self, *raised: object) -> None:
        logging.getLogger().removeHandler(self._handler)


def error(ours: Tensor, theirs: Tensor) -> float:
    size = float(theirs.norm())
    assert bool(ours.isfinite().all()) and bool(theirs.isfinite().all()), "not finite"
    return float((ours - theirs).norm()) / size if size else float(ours.norm())


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def row(case: Case, folder: Path) -> dict[str, Any]:
    try:
        run = Run(case, folder)
    except KilnError as refusal:
        return {"refused": str(refusal)}
    except Exception as failure:
        return dict.fromkeys(ASPECTS, f"{type(failure).__name__}: {failure}")
    found: dict[str, Any] = {}
    for name, measure in ASPECTS.items():
        try:
            found[name] = measure(run)
        except Exception as failure:
            found[name] = f"{type(failure).__name__}: {failure}"
        finally:
            comfy.model_management.unload_all_models()
    found |= {"layers": run.layers, "batches": run.batches, "needs_image": run.denoiser.needs_start_image}
    noise = ("timestep_sampling", "shift", "shift_by_size")
    found |= {
        "noise": {key: getattr(run.objective, key) for key in noise},
        "diffusers": run.has_diffusers_names(),
    }
    found |= {"trained": run.trained, "in_file": run.in_file, "left_out": run.left_out}
    return found


def main() -> None:
    rows = {}
    for name in NAMES or CASES:
        if not hasattr(comfy.supported_models, CASES[name].config):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row(CASES[name], Path(folder))
        print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    print(json.dumps(rows))


main()
