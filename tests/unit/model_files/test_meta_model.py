"""A network from a file's header alone is planned for as the network itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainer.adapter.targets import choose_targets
from trainer.config import TrainConfig
from trainer.errors import KilnError
from trainer.memory.blocks import find_blocks
from trainer.memory.estimate import estimate
from trainer.model_files.meta_model import meta_model, read_shapes, read_text_shapes


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict(
            {"q": nn.Linear(8, 8), "norm_q": nn.LayerNorm(8), "o": nn.Linear(8, 8)}
        )
        self.ffn = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8, bias=False))
        self.modulation = nn.Parameter(torch.zeros(1, 6, 8))


class Network(nn.Module):
    """Named as Wan is."""

    patch_size = (1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(16, 8, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8))
        self.blocks = nn.ModuleList(Block() for _ in range(3))


def saved(folder: Path, prefix: str = "") -> Path:
    state = {prefix + k: v.to(torch.bfloat16) for k, v in Network().state_dict().items()}
    save_file(
        {**state, "vae.encoder.weight": torch.zeros(99)} if prefix else state, folder / "model.safetensors"
    )
    return folder / "model.safetensors"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_plan_is_that_of_the_network(tmp_path: Path, prefix: str) -> None:
    shapes, dtype = read_shapes(saved(tmp_path, prefix))
    assert dtype == torch.bfloat16
    plans = []
    for network in (meta_model(shapes, dtype), Network().to(torch.bfloat16)):
        targets = choose_targets(network, "")
        layers = dict(network.named_modules())
        widths = [(t, layers[t].in_features, layers[t].out_features) for t in sorted(targets)]
        names = {id(m): n for n, m in network.named_modules()}
        blocks = [names[id(b)] for b in find_blocks(network)]
        plan = estimate(network, targets, TrainConfig(), (16, 9, 64, 64), bytes_per_value=2, trained=1000)
        plans.append((plan, widths, blocks))
    assert plans[0] == plans[1] and plans[0][0].activations > 0
    assert plans[0][2] == ["blocks.0", "blocks.1", "blocks.2"] and len(plans[0][1]) == 12


def test_a_file_without_a_network_is_named(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(KilnError, match=r"empty\.safetensors holds no network"):
        read_shapes(tmp_path / "empty.safetensors")


def test_text_encoders_of_a_checkpoint(tmp_path: Path) -> None:
    """As SDXL's files have them: CLIP-L in transformers' words, CLIP-G in OpenCLIP's with q, k and v in one."""
    clip_l, clip_g = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4),
        f"{clip_l}embeddings.token_embedding.weight": torch.zeros(50, 8),
        f"{clip_l}encoder.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8),
        f"{clip_g}token_embedding.weight": torch.zeros(50, 12),
        f"{clip_g}transformer.resblocks.0.attn.in_proj_weight": torch.zeros(36, 12),
        f"{clip_g}transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(24, 12),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    shapes, dtype = read_text_shapes(tmp_path / "model.safetensors")
    assert dtype == torch.float32
    chosen = choose_targets(meta_model(shapes, dtype), "")
    assert [n.rpartition(".resblocks.0.")[2].rpartition("layers.0.")[2] for n in chosen] == [
        *("self_attn.q_proj", "attn.q", "attn.k", "attn.v", "mlp.c_fc")
    ]
    alone = {n.removeprefix(clip_l): t for n, t in tensors.items() if n.startswith(clip_l)}
    save_file(alone, tmp_path / "clip.safetensors")
    assert len(read_text_shapes(tmp_path / "clip.safetensors")[0]) == 2
    save_file({"model.diffusion_model.x.weight": torch.zeros(4, 4)}, tmp_path / "unet.safetensors")
    with pytest.raises(KilnError, match="holds no text encoder that can be planned for"):
        read_text_shapes(tmp_path / "unet.safetensors")
