"""Which layers get an adapter."""

from __future__ import annotations

import pytest
from torch import nn

from trainer.adapter.targets import choose_targets
from trainer.errors import KilnError


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
