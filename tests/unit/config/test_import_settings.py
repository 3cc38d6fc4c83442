"""Settings of the guide and of other trainers; the memory estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.adapter.inject import make_adapter
from trainer.adapter.targets import choose_targets
from trainer.config import PRESETS, AdapterConfig, MemoryConfig, TrainConfig
from trainer.config.import_settings import as_settings, import_settings, widget_values
from trainer.errors import KilnError
from trainer.memory.activations import Activations, tokens
from trainer.memory.estimate import Estimate, estimate
from trainer.memory.shared_clone import SharedClone

GUIDE = """
lora_config:
  rank: 96
  alpha: 32
  target_modules: ["to_k", "to_v", "to_q", "ff.net.0.proj"]
  dropout: 0.05
  bias: none
train:
  steps: 2000
  learning_rate: 1e-4
  lr_scheduler: cosine_with_warmup
  lr_warmup_steps: 100
  prompt_template: "best quality, masterpiece, illustration, [character_name]"
"""


def test_the_guides_yaml() -> None:
    found = import_settings(GUIDE)
    config = found.config
    assert (config.steps, config.adapter.rank, config.adapter.alpha, config.warmup_steps) == (
        2000,
        96,
        32.0,
        100,
    )
    assert config.adapter.target_modules == "to_k to_v to_q ff.net.0.proj"
    assert config.optimizer.schedule == "cosine" and config.optimizer.learning_rate == 1e-4
    assert found.prompt_template == "best quality, masterpiece, illustration, [character_name]"
    names = "rank alpha target_modules dropout bias steps learning_rate lr_scheduler lr_warmup_steps prompt_template"
    assert " ".join(line.split(":")[0] for line in found.report) == names
    assert all(": used" in line for line in found.report)
    assert widget_values(found)["rank"] == 96
    settings = as_settings(found)
    assert settings["adapter"] == {"target_modules": "to_k to_v to_q ff.net.0.proj", "dropout": 0.05}
    assert settings["optimizer"] == {"schedule": "cosine", "warmup_steps": 100}


def test_names_of_other_trainers() -> None:
    text = "network_dim: 16\nnetwork_alpha: 8\nunet_lr: 2e-4\noptimizer_type: AdamW8bit\n"
    text += "max_train_steps: 300\nmixed_precision: bf16"
    found = import_settings(text)
    assert (found.config.adapter.rank, found.config.steps) == (16, 300)
    assert found.config.optimizer.optimizer == "adamw_8bit" and found.config.optimizer.learning_rate == 2e-4
    assert found.report[-1].startswith("mixed_precision: not used, the model's own precision")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank: many", "rank is 'many'; it must be of the kind of 64"),
        ("rank: 2.5", "rank is 2.5"),
        ("rank: 0", "rank is 0; it must lie between 1 and 1024"),
        ("bias: all", "bias is 'all'; a LoRA here has no bias"),
        ("lr_scheduler: wavy", "schedule is 'wavy'; choose one of constant"),
        ("- a\n- b", "hold no 'name: value' lines"),
        ("rank: [", "not valid YAML"),
        ("x: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(KilnError, match=message):
        import_settings(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rnak: 3", "rnak: not used, it is not known; the nearest known one is 'rank'"),
        (
            "lr_warmup_step: 3",
            "lr_warmup_step: not used, it is not known; the nearest known one is 'lr_warmup_steps'",
        ),
    ],
)
def test_a_key_that_is_not_known_is_reported(text: str, line: str) -> None:
    assert import_settings(text + "\nsteps: 7").report == [line, "steps: used as steps = 7"]


def test_every_preset_is_a_valid_run_and_can_be_imported() -> None:
    folder = Path(__file__).parents[3] / "trainer" / "presets"
    assert len(list(folder.glob("*.yaml"))) == len(PRESETS) == 11
    for file in folder.glob("*.yaml"):
        text = "\n".join(
            line for line in file.read_text("utf-8").splitlines() if not line.startswith("name:")
        )
        assert text.startswith("# ")
        values = widget_values(import_settings(text))
        assert {k: values[k] for k in PRESETS["standard"]} in PRESETS.values()


class Block(nn.Module):
    """A transformer block's linear layers with a Wan-like shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        queries, keys, values = (layer(y)[:, None] for layer in (self.q, self.k, self.v))
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
        x = x + self.o(attended[:, 0])
        return x + self.ffn(self.norm(x))


class Network(nn.Module):
    patch_size = (1, 2, 2)

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def bytes_kept(dim: int, depth: int, count: int) -> tuple[int, int]:
    """What torch keeps for backward of one item of `count` tokens, and the estimate of it."""
    network = Network(dim, depth)
    with SharedClone(network).weights() as module:
        make_adapter(module, AdapterConfig(rank=4, alpha=4.0, dropout=0.0), 0)
        kept: dict[int, int] = {}
        weights = {p.data_ptr() for p in module.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            answer = module(torch.randn(1, count, dim))
        assert answer.requires_grad
    latent = (16, 1, 4, count)  # two by half of it: patches of two by two
    return sum(kept.values()), 4 * Activations(network, choose_targets(network, ""), latent).whole


@pytest.mark.parametrize(("dim", "depth", "count"), [(64, 2, 256), (128, 4, 100)])
def test_activations_are_of_the_right_size(dim: int, depth: int, count: int) -> None:
    kept, planned = bytes_kept(dim, depth, count)
    assert 0.6 < planned / kept < 1.7, planned / kept


def plan(
    free: int | None,
    batch_size: int = 4,
    level: str = "resident",
    depth: int = 2,
    side: int = 32,
    **known: Any,
) -> Estimate:
    network = Network(64, depth)
    return estimate(
        network,
        choose_targets(network, ""),
        TrainConfig(batch_size=batch_size, memory=MemoryConfig(level=level)),
        (16, 1, side, side),
        bytes_per_value=4,
        trained=1000,
        free=free,
        **known,
    )


def test_estimate_and_what_would_fit() -> None:
    assert tokens(Network(8, 1), (16, 3, 32, 32)) == 3 * 16 * 16
    whole = plan(None)
    weights: Any = sum(p.numel() * 4 for p in Network(64, 2).parameters())
    assert whole.weights == weights and (whole.adapter, whole.gradients, whole.optimizer) == (
        4000,
        4000,
        8000,
    )
    assert plan(whole.total).advice == "" and plan(whole.total).total == whole.total
    single = plan(None, 1).total
    assert "batch_size 1 with gradient_accumulation 4 would fit" in plan(single).sentence()
    assert "a resolution lower by about" in plan(single - 1000, 1).advice
    assert "does not hold the weights" in plan(1000).advice


def test_what_is_drawn_is_left_to_its_node() -> None:
    found = import_settings("validation: {every: 50}\nsample: {prompts: a cat, cfg: 4}")
    assert found.themes == {"validation": {"every": 50}}
    assert "prompts: not used, set it on the Sample Settings node" in found.report


def test_auto_takes_the_first_level_that_fits() -> None:
    """From all the memory there is down to none: each rung is taken where the one before no longer fits."""
    deep: dict[str, Any] = {"depth": 6, "side": 8}  # weights count for more than activations
    needs = {}
    for level in ("resident", "checkpoint activations", "stream blocks"):
        needs[level] = plan(None, level=level, **deep).total
        assert plan(int(needs[level] / 0.89), level="auto", **deep).memory.level == level
    assert needs["resident"] > needs["checkpoint activations"] > needs["stream blocks"]
    chosen = plan(int(needs["stream blocks"] / 0.89), level="auto", **deep)
    assert "at memory level stream blocks, chosen for the" in chosen.sentence()
    assert "(resident needs" in chosen.sentence() and not chosen.advice
    assert plan(None, level="auto", **deep).memory.level == "resident"
    least = plan(1000, level="auto", **deep)
    assert least.memory == MemoryConfig(
        level="stream blocks", offload_block_inputs=True, recompute_parts=True
    )
    assert "does not hold two blocks" in least.advice
    assert plan(1000, level="auto", **deep, streams=False).memory.level == "checkpoint activations"
    short = {"from_file": True, "free_ram": 1000}
    assert plan(1000, level="auto", **deep, **short).memory.level == "stream from file"
    assert plan(1000, level="auto", **deep, from_file=True, free_ram=10**9).memory.level == "stream blocks"


def test_plans_by_part() -> None:
    """Two blocks of two: streaming has nothing to gain but the rest; fp8 takes the matrices at a quarter of fp32."""
    network = Network(64, 2)
    matrices = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear))

    def weights(memory: MemoryConfig) -> int:
        return estimate(
            network,
            choose_targets(network, ""),
            TrainConfig(memory=memory),
            (16, 1, 32, 32),
            bytes_per_value=4,
            trained=1000,
        ).weights

    whole = sum(p.numel() * 4 for p in network.parameters())
    assert weights(MemoryConfig(level="stream blocks")) == whole == weights(MemoryConfig(level="resident"))
    assert weights(MemoryConfig(level="resident", base_precision="fp8")) == whole - 3 * matrices
