"""Which layers get a LoRA, the twin they live in, and the files they are written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from trainer.adapter.lora import LoraAdapter
from trainer.adapter.targets import choose_targets
from trainer.config import AdapterConfig
from trainer.errors import KilnError
from trainer.lora_files.convert import convert_keys
from trainer.lora_files.export import export_adapter
from trainer.lora_files.lora_weights import LoraWeights, origin_metadata
from trainer.lora_files.save import save_lora
from trainer.memory.shared_clone import SharedClone
from trainer.safefile import write_safetensors

from ..toy import ToyDenoiser


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


def endings(names: list[str]) -> set[str]:
    return {n.split(".", 2)[2] for n in names}


def test_default_targets_are_the_linears_of_the_blocks() -> None:
    names = choose_targets(WanLike(), "")
    attention = {f"{a}.{layer}" for a in ("self_attn", "cross_attn") for layer in "qkvo"}
    assert endings(names) == attention | {"ffn.0", "ffn.2"} and len(names) == 20


def test_names_match_whole_parts() -> None:
    """q must not catch norm_q."""
    names = choose_targets(WanLike(), "q, v")
    assert endings(names) == {"self_attn.q", "self_attn.v", "cross_attn.q", "cross_attn.v"}


def test_diffusers_names_are_understood() -> None:
    wanted = choose_targets(WanLike(), "to_k to_v to_q ff.net.0.proj")
    assert wanted == choose_targets(WanLike(), "k v q ffn.0")


def test_regular_expression() -> None:
    assert choose_targets(WanLike(), r"blocks\.1\.ffn\.\d") == ["blocks.1.ffn.0", "blocks.1.ffn.2"]


def test_own_and_diffusers_names_together() -> None:
    assert choose_targets(WanLike(), "q to_k") == choose_targets(WanLike(), "q k")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("q to_qq", "'to_qq' matches no linear layer of this model; names that exist end in .*cross_attn.k"),
        ("(", "not a valid"),
    ],
)
def test_bad_targets(wanted: str, message: str) -> None:
    with pytest.raises(KilnError, match=message):
        choose_targets(WanLike(), wanted)


def test_only_chosen_layers_are_replaced_and_only_in_the_twin() -> None:
    model = WanLike()
    twin = SharedClone(model)
    with twin.weights() as module:
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


def test_twin_shares_memory_and_sheds_inference() -> None:
    denoiser = ToyDenoiser()
    original = denoiser.network.text.weight
    assert original.is_inference()
    with denoiser.session():
        weight = denoiser.module.text.weight
        assert (
            weight.data_ptr() == original.data_ptr()
            and not weight.is_inference()
            and not weight.requires_grad
        )
    assert not list(denoiser.module.parameters())
    assert denoiser.network.text.weight is original


def test_twin_keeps_shared_modules_shared() -> None:
    layer = nn.Linear(2, 2)
    with SharedClone(nn.ModuleList([layer, layer])).weights() as module:
        assert module[0] is module[1]


def test_twin_follows_moved_weights() -> None:
    """The host replaces parameters and flips attributes when it moves a model."""
    model = nn.ModuleList([nn.Linear(2, 2)])
    twin = SharedClone(model)
    model[0].weight = nn.Parameter(torch.full((2, 2), 5.0))
    model[0].comfy_cast_weights = True
    with twin.weights() as module:
        assert module[0].weight.unique().item() == 5.0 and module[0].comfy_cast_weights


STATE = {"blocks.0.q.lora_A.weight": torch.randn(4, 8), "blocks.0.q.lora_B.weight": torch.randn(8, 4)}


def test_alpha_is_written_where_it_differs() -> None:
    same = export_adapter(STATE, AdapterConfig(rank=4, alpha=4.0))
    assert set(same) == {"diffusion_model." + k for k in STATE}
    other = export_adapter(STATE, AdapterConfig(rank=4, alpha=2.0))
    assert other["diffusion_model.blocks.0.q.alpha"].item() == 2.0


def test_kohya_format() -> None:
    kohya = convert_keys(export_adapter(STATE, AdapterConfig(rank=4, alpha=4.0)), "kohya")
    assert set(kohya) == {
        f"lora_unet_blocks_0_q.{k}" for k in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert kohya["lora_unet_blocks_0_q.alpha"].item() == 4.0
    assert torch.equal(kohya["lora_unet_blocks_0_q.lora_up.weight"], STATE["blocks.0.q.lora_B.weight"])


def test_saved_file_tells_its_origin(tmp_path: Path) -> None:
    metadata = origin_metadata({"steps": 5}, "data", "base", 5, {"workflow": {"nodes": []}, "prompt": None})
    lora = LoraWeights(export_adapter(STATE, AdapterConfig(rank=4, alpha=2.0)), metadata)
    save_lora(tmp_path / "sub" / "a.safetensors", lora, dtype="bf16")
    with safe_open(tmp_path / "sub" / "a.safetensors", "pt") as opened:
        found = opened.metadata()
    assert json.loads(found["workflow"]) == {"nodes": []} and "prompt" not in found
    assert json.loads(found["lora_kiln.config"]) == {"steps": 5}
    tensors = load_file(tmp_path / "sub" / "a.safetensors")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "sub" / "a.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    assert tensors["diffusion_model.blocks.0.q.lora_A.weight"].dtype == torch.bfloat16
    assert tensors["diffusion_model.blocks.0.q.alpha"].dtype == torch.float32


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.safefile.save_file", full_disk)
    with pytest.raises(KilnError, match=r"Cannot write .*No space left on device.*check free space"):
        write_safetensors(tmp_path / "a.safetensors", {}, {})
    assert not list(tmp_path.iterdir())
