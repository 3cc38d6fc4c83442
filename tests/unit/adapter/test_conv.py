"""LoRAs of convolutions against peft's own, which are separate recorded operations."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

from trainer.adapter.inject import make_adapter
from trainer.adapter.lora import LoraAdapter
from trainer.config import AdapterConfig
from trainer.errors import KilnError
from trainer.lora_files.export import export_adapter
from trainer.lora_files.formulas import group_by_layer, merged_weight


class Net(nn.Module):
    """Convolutions of several kinds, one of which gets no LoRA."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        block = {
            "conv": nn.Conv2d(4, 6, 3, stride=2, padding=1),
            "point": nn.Conv2d(6, 6, 1),
            "grouped": nn.Conv2d(6, 6, 3, padding=1, groups=2),
            "linear": nn.Linear(6, 6),
        }
        self.blocks = nn.ModuleList([nn.ModuleDict(block)])
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        (block,) = self.blocks
        y = block["grouped"](block["point"](block["conv"](x).relu()))
        z: Tensor = block["linear"](y.movedim(1, -1))
        return z


CONFIG = AdapterConfig(rank=4, alpha=2.0, dropout=0.0, conv_rank=2, conv_alpha=3.0)
CONVOLUTIONS = ["blocks.0.conv", "blocks.0.point"]


def adapted(config: AdapterConfig) -> tuple[Net, LoraAdapter]:
    network = Net()
    adapter = LoraAdapter(network, config, 0)
    draws = torch.Generator().manual_seed(5)
    state = {k: torch.randn(v.shape, generator=draws) for k, v in adapter.state_dict().items()}
    adapter.load_state_dict(state)
    return network, adapter


def test_outputs_and_gradients_are_peft_s() -> None:
    network, adapter = adapted(CONFIG)
    assert list(adapter.convolutions) == CONVOLUTIONS, "a grouped one gets none"
    config = peft.LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=[*CONVOLUTIONS, "blocks.0.linear"],
        rank_pattern={"blocks.0.conv": 2},
        alpha_pattern={
            "blocks.0.conv": 3.0
        },  # 1 x 1 convolutions have rank and alpha of linear layers, as kohya's
    )
    reference = Net()
    peft.inject_adapter_in_model(config, reference, "default")
    peft.set_peft_model_state_dict(reference, adapter.state_dict())
    x = torch.randn(2, 4, 6, 6)
    ours, theirs = network(x), reference(x)
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    grads = {k.replace(".default", ""): p.grad for k, p in reference.named_parameters() if p.grad is not None}
    for name, layer in {**adapter.layers, **adapter.convolutions}.items():
        for part, matrix in zip("AB", layer.matrices, strict=True):
            torch.testing.assert_close(matrix.grad, grads[f"{name}.lora_{part}.weight"], rtol=1e-4, atol=1e-4)


def test_the_file_is_the_update() -> None:
    """Weights with the file's update merged give the network's outputs."""
    network, adapter = adapted(CONFIG)
    merged = Net()
    weights = dict(merged.named_parameters())
    for layer, parts in group_by_layer(export_adapter(adapter.state_dict(), CONFIG)).items():
        weight = weights[layer.removeprefix("diffusion_model.") + ".weight"]
        weight.data.copy_(merged_weight(parts, weight.detach().clone(), 1.0).reshape(weight.shape))
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(network(x), merged(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dropout", "rank_dropout"])
def test_dropout_comes_from_the_seed(name: str) -> None:
    network, adapter = adapted(AdapterConfig(rank=4, alpha=2.0, conv_rank=4, **{"dropout": 0.0, name: 0.5}))
    x = torch.randn(1, 4, 6, 6)
    plain = network(x)
    adapter.set_step(0, 1)
    first, again = network(x), network(x)
    adapter.set_step(0, 2)
    other = network(x)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, plain)
    adapter.disable_dropout()
    assert torch.equal(network(x), plain)


def test_norms_are_limited() -> None:
    _, adapter = adapted(AdapterConfig(rank=4, alpha=2.0, conv_rank=2, max_weight_norm=0.5))
    adapter.limit_norms()
    for layer in adapter.convolutions.values():
        a, b = (m.detach().flatten(1) for m in layer.matrices)
        assert float((layer.scale * b @ a).norm()) < 0.5 + 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "loha"}, "conv_rank is for the kind lora"),
        ({"exclude_modules": "conv|point"}, "no convolutions"),
    ],
)
def test_refused(options: dict[str, str], message: str) -> None:
    config = AdapterConfig(rank=4, alpha=2.0, conv_rank=2, **options)  # type: ignore[arg-type]
    with pytest.raises(KilnError, match=message):
        make_adapter(Net(), config, 0)
