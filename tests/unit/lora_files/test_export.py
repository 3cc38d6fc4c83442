"""Layers that no gradient reached are left out of the file, whatever the kind of adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.adapter.inject import make_adapter
from trainer.config import AdapterConfig
from trainer.lora_files.export import export_adapter, without_untouched

KINDS = [{"kind": kind} for kind in ("lora", "dora", "loha", "lokr", "oft")] + [{"init": "pissa"}]


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        for parameter in self.parameters():
            parameter.requires_grad_(False)


@pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(o.values()))
def test_layers_without_an_update_are_left_out(options: dict[str, str]) -> None:
    config = AdapterConfig(rank=4, alpha=4.0, dropout=0.0, target_modules="0 1", **options)
    network = TwoLayers()
    adapter = make_adapter(network, config, 0)
    whole = export_adapter(adapter.state_dict(), config)
    assert without_untouched(whole) == (whole, []), "a run without a step keeps all layers"

    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    network.blocks[1](torch.ones(2, 8)).square().sum().backward()
    optimizer.step()
    file, left_out = without_untouched(export_adapter(adapter.state_dict(), config))
    assert left_out == ["blocks.0"]
    assert file.keys() == {k for k in whole if ".blocks.1." in k}
