"""The plain LoRA in a network: where it is injected, and its start values."""

from __future__ import annotations

import torch
from torch import nn

from trainer.adapter.lora import LoraAdapter
from trainer.config import AdapterConfig
from trainer.memory.shared_clone import SharedClone


class WanLike(nn.Module):
    """The layer names of a Wan model, in miniature."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(4, 8, (1, 2, 2))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(8, 48))
        self.blocks = nn.ModuleList(WanLike._block() for _ in range(2))
        self.head = nn.ModuleDict({"head": nn.Linear(8, 16)})

    @staticmethod
    def _block() -> nn.ModuleDict:
        def attention() -> nn.ModuleDict:
            layers: dict[str, nn.Module] = {name: nn.Linear(8, 8) for name in "qkvo"}
            return nn.ModuleDict({**layers, "norm_q": nn.LayerNorm(8), "norm_k": nn.LayerNorm(8)})

        ffn = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        return nn.ModuleDict({"self_attn": attention(), "cross_attn": attention(), "ffn": ffn})


def test_only_chosen_layers_are_replaced_and_only_in_the_twin() -> None:
    model = WanLike()
    clone = SharedClone(model)
    with clone.weights() as module:
        adapter = LoraAdapter(module, AdapterConfig(rank=2, alpha=2.0, target_modules="self_attn.q"), seed=0)
        trainable = [n for n, p in module.named_parameters() if p.requires_grad]
    assert list(adapter.layers) == ["blocks.0.self_attn.q", "blocks.1.self_attn.q"]
    assert len(trainable) == 4 and all(".lora_" in n for n in trainable)
    assert list(model.state_dict()) == list(WanLike().state_dict())


def test_start_values_depend_on_the_seed_alone() -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        with SharedClone(WanLike()).weights() as module:
            return LoraAdapter(module, AdapterConfig(rank=2, alpha=2.0), seed).state_dict()

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["blocks.0.ffn.0.lora_A.weight"], other["blocks.0.ffn.0.lora_A.weight"])
    assert not first["blocks.0.ffn.0.lora_B.weight"].any()
    bound = (6 / ((1 + 5) * 8)) ** 0.5  # Kaiming uniform with a = sqrt 5: 1 / sqrt(fan_in)
    values = torch.cat([v.flatten() for k, v in first.items() if k.endswith("q.lora_A.weight")])
    assert values.abs().max() <= bound and values.std() > 0.4 * bound
