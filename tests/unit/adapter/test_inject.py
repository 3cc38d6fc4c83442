"""Every kind of adapter in the loop: learns, repeats, resumes; the options of the plain LoRA by their arithmetic."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.adapter.inject import make_adapter
from trainer.adapter.lora import LoraAdapter
from trainer.adapter.targets import LayerShape, choose_targets, layer_shape
from trainer.config import AdapterConfig, TrainConfig
from trainer.errors import KilnError
from trainer.events import Controls, Event, StepEvent
from trainer.loop.train import train
from trainer.lora_files.export import export_adapter
from trainer.memory.shared_clone import SharedClone
from trainer.runs.checkpoint_list import find_checkpoints

from ..toy import ToyDenoiser, make_config, make_encoded
from .test_lora import WanLike

KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"rank_stabilised": True},
    "rank dropout": {"rank_dropout": 0.3},
    "pissa": {"init": "pissa"},
    "orthogonal": {"init": "orthogonal"},
    "norms": {"max_weight_norm": 0.5},
    "patterns": {"rank_pattern": "blocks.1=2"},
    "dora": {"kind": "dora"},
    "loha": {"kind": "loha", "rank_dropout": 0.2},
    "lokr": {"kind": "lokr", "rank_dropout": 0.2},
    "oft": {"kind": "oft"},
}


def config_of(options: dict[str, Any], **more: Any) -> TrainConfig:
    made = make_config(**{"steps": 40, "learning_rate": 2e-2, **more})
    adapter = AdapterConfig(**{"rank": 4, "alpha": 4.0, "dropout": 0.2, **options})
    return dataclasses.replace(made, adapter=adapter)


@pytest.mark.parametrize("name", KINDS)
def test_learns_and_resumes_exactly(tmp_path: Path, name: str) -> None:
    encoded, config = make_encoded(tmp_path, count=5), config_of(KINDS[name])
    whole = train(ToyDenoiser(), encoded, config, run_folder=tmp_path / "whole")
    controls = Controls()

    def stop(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == 17:
            controls.stop()

    folder = tmp_path / "part"
    train(ToyDenoiser(), encoded, config, run_folder=folder, controls=controls, emit=stop)
    torch.manual_seed(123)  # nothing hangs on the global generator
    rest = train(ToyDenoiser(), encoded, config, run_folder=folder, resume_from=find_checkpoints(folder)[-1])
    assert rest.losses == whole.losses
    assert all(torch.equal(rest.adapter[k], whole.adapter[k]) for k in whole.adapter)
    assert sum(whole.losses[-10:]) < sum(whole.losses[:10])
    assert all(t.isfinite().all() for t in export_adapter(whole.adapter, config.adapter).values())


def injected(options: dict[str, Any]) -> tuple[nn.Module, Any]:
    with SharedClone(WanLike()).weights() as module:
        adapter = make_adapter(module, AdapterConfig(rank=4, alpha=2.0, dropout=0.0, **options), 0)
    return module, adapter


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_start_values_come_from_the_seed(kind: str) -> None:
    with SharedClone(WanLike()).weights() as module:
        first = make_adapter(module, AdapterConfig(rank=4, alpha=4.0, kind=kind), 1).state_dict()
    torch.manual_seed(77)
    model = WanLike()
    before = torch.random.get_rng_state()
    with SharedClone(model).weights() as module:
        again = make_adapter(module, AdapterConfig(rank=4, alpha=4.0, kind=kind), 1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"
    same = [k for k in first if "magnitude" not in k and "ratio" not in k]
    assert same and all(torch.equal(first[k], again[k]) for k in same)


def test_rank_patterns() -> None:
    config = AdapterConfig(rank=4, alpha=2.0, rank_pattern="ffn=16:8, blocks.1=2")
    assert layer_shape("blocks.0.ffn.0", config) == LayerShape(16, 8.0)
    assert layer_shape("blocks.1.ffn.0", config) == LayerShape(16, 8.0)  # the first that is found counts
    assert layer_shape("blocks.1.self_attn.q", config) == LayerShape(2, 2.0)
    assert layer_shape("blocks.0.self_attn.q", config) == LayerShape(4, 2.0)
    _, adapter = injected({"rank_pattern": "ffn=16:8"})
    assert adapter.layers["blocks.0.ffn.0"].lora_A["default"].weight.shape[0] == 16
    assert (
        adapter.layers["blocks.0.ffn.0"].scale == 0.5 and adapter.layers["blocks.0.self_attn.q"].scale == 0.5
    )
    for bad in ("ffn", "ffn=many", "ffn=0", "=4:-1", "(=4"):
        with pytest.raises(KilnError, match="rank_pattern"):
            layer_shape("x", dataclasses.replace(config, rank_pattern=bad))


def test_exclusion() -> None:
    names = choose_targets(WanLike(), "", "cross_attn|ffn")
    assert len(names) == 8 and all("self_attn" in n for n in names)
    with pytest.raises(KilnError, match="leaves out all 20 layers"):
        choose_targets(WanLike(), "", "blocks")
    with pytest.raises(KilnError, match="exclude_modules is not a valid"):
        choose_targets(WanLike(), "", "(")


def test_rank_stabilised_scale() -> None:
    _, adapter = injected({"rank_stabilised": True})
    assert adapter.layers["blocks.0.self_attn.q"].scale == 2.0 / math.sqrt(4)


def test_pissa_starts_at_the_largest_directions_and_changes_nothing() -> None:
    model = WanLike()
    weight = model.blocks[0]["self_attn"]["q"].weight.detach()
    with SharedClone(model).weights() as module:
        adapter = make_adapter(module, AdapterConfig(rank=4, alpha=2.0, dropout=0.0, init="pissa"), 0)
        state = adapter.state_dict()
        x = torch.randn(3, 8)
        expected = model.blocks[0]["self_attn"]["q"](x)
        torch.testing.assert_close(module.blocks[0]["self_attn"]["q"](x), expected, rtol=1e-4, atol=1e-5)
    update = 0.5 * state["blocks.0.self_attn.q.lora_B.weight"] @ state["blocks.0.self_attn.q.lora_A.weight"]
    u, s, v = torch.linalg.svd(weight)
    torch.testing.assert_close(update, u[:, :4] * s[:4] @ v[:4], rtol=1e-3, atol=1e-4)
    file = export_adapter(state, AdapterConfig(rank=4, alpha=2.0, init="pissa"))
    b, a = (file[f"diffusion_model.blocks.0.self_attn.q.lora_{m}.weight"] for m in "BA")
    assert a.shape == (8, 8) and (b @ a).abs().max() < 1e-5  # twice the rank, and nothing learned yet


def test_weight_norms_are_limited() -> None:
    _, adapter = injected({"max_weight_norm": 1.0})
    assert isinstance(adapter, LoraAdapter)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    adapter.limit_norms()
    for layer in adapter.layers.values():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert float((layer.scale * b @ a).detach().norm()) == pytest.approx(1.0, rel=1e-5)


def test_rank_dropout_drops_whole_ranks_and_rests() -> None:
    with SharedClone(WanLike()).weights() as module:
        adapter = make_adapter(module, AdapterConfig(rank=4, alpha=4.0, dropout=0.0, rank_dropout=0.5), 0)
        for parameter in adapter.parameters():
            nn.init.ones_(parameter)
        layer, x = adapter.layers["blocks.0.self_attn.q"], torch.ones(1, 8)  # type: ignore[attr-defined]
        base = layer.base_layer(x)
        adapter.disable_dropout()
        assert float((layer(x) - base)[0, 0]) == pytest.approx(32.0)  # 4 ranks of 8
        seen = set()
        for step in range(100):
            adapter.set_step(0, step)
            seen.add(round(float((layer(x) - base)[0, 0])))
            adapter.set_step(0, step)
            assert round(float((layer(x) - base)[0, 0])) in seen
    assert seen == {0, 16, 32, 48, 64}  # whole ranks of 8, doubled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dora", "init": "pissa"}, "init and max_weight_norm are for the kind lora"),
        ({"kind": "oft", "rank_dropout": 0.1}, "rank_dropout is not for the kind oft"),
        ({"init": "orthogonal", "rank": 3}, "needs even ranks and one is 3"),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with SharedClone(WanLike()).weights() as module, pytest.raises(KilnError, match=message):
        make_adapter(module, AdapterConfig(**{"rank": 4, "alpha": 4.0, **options}), 0)
