"""Resizing a LoRA, against the best matrix of that rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.errors import KilnError
from trainer.lora_files.formulas import delta_weight, group_by_layer
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.resize import resize
from trainer.lora_files.svd import dense_svd

LAYER, CONV = "diffusion_model.blocks.0.self_attn.q", "diffusion_model.patch_embedding"


def lora(rank: int, alpha: float | None, seed: int, conv: bool = True) -> LoraWeights:
    g = torch.Generator().manual_seed(seed)
    tensors = {
        f"{LAYER}.lora_A.weight": torch.randn(rank, 20, generator=g),
        f"{LAYER}.lora_B.weight": torch.randn(24, rank, generator=g),
    }
    if conv:
        tensors[f"{CONV}.lora_A.weight"] = torch.randn(rank, 4, 3, 3, generator=g)
        tensors[f"{CONV}.lora_B.weight"] = torch.randn(16, rank, 1, 1, generator=g)
    if alpha is not None:
        tensors |= {f"{k}.alpha": torch.tensor(alpha) for k in ([LAYER, CONV] if conv else [LAYER])}
    return LoraWeights(tensors)


def dense(weights: LoraWeights) -> dict[str, Tensor]:
    return {
        name: found
        for name, parts in group_by_layer(weights).items()
        if (found := delta_weight(parts)) is not None
    }


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> bool:
    return float((ours - theirs).norm() / theirs.norm()) < tolerance


FIRST, SECOND = lora(4, 2.0, 1), lora(6, None, 2)


def test_resize_to_a_rank_is_optimal() -> None:
    small, sentence = resize(FIRST, 2)
    for name, found in dense(small).items():
        values = torch.linalg.svdvals(dense(FIRST)[name].flatten(1))
        error = float((found - dense(FIRST)[name]).norm())
        assert error == pytest.approx(float(values[2:].square().sum().sqrt()), rel=1e-4)
    assert sentence.startswith("rank 2, ")


def test_resize_by_energy_takes_the_smallest_rank_that_does() -> None:
    small, _ = resize(SECOND, 64, energy=0.8)
    for name, parts in group_by_layer(small).items():
        values = torch.linalg.svdvals(dense(SECOND)[name].flatten(1)).double().square()
        rank = parts["lora_A.weight"].shape[0]
        assert values[:rank].sum() >= 0.8 * values.sum() > values[: rank - 1].sum()


def test_resize_leaves_biases_and_norms_alone() -> None:
    plain = {f"{LAYER}.diff_b": torch.ones(24), "diffusion_model.blocks.0.norm3.diff": torch.ones(20)}
    plain |= {
        "diffusion_model.blocks.0.norm3.diff_b": torch.ones(20),
        "diffusion_model.blocks.0.modulation.diff": torch.ones(1, 6, 20),
    }
    small, sentence = resize(LoraWeights({**FIRST, **plain}), 2)
    assert all(small[key].equal(tensor) for key, tensor in plain.items()) and sentence.startswith("rank 2, ")
    assert not any("modulation.lora" in key or "norm3.lora" in key for key in small)
    with pytest.raises(KilnError, match="only differences of biases and norms"):
        resize(LoraWeights(plain), 2)


@pytest.mark.parametrize(
    ("rank", "energy", "message"), [(0, None, "rank is 0; it"), (4, 1.5, "energy is 1.5; it")]
)
def test_sizes_out_of_range(rank: int, energy: float | None, message: str) -> None:
    with pytest.raises(KilnError, match=message):
        resize(FIRST, rank, energy)


def test_a_larger_rank_keeps_the_layer() -> None:
    large, sentence = resize(FIRST, 64)
    assert all(close(found, dense(FIRST)[name]) for name, found in dense(large).items())
    assert sentence == "rank 4, 100.00 % of the energy kept"


def test_randomised_svd_of_a_large_matrix_is_close_to_the_best() -> None:
    g = torch.Generator().manual_seed(2)
    matrix = torch.randn(2100, 8, generator=g) @ torch.randn(8, 2200, generator=g)
    matrix += 0.01 * torch.randn(2100, 2200, generator=g)
    u, s, vt = dense_svd(matrix, 8)
    rest = float((matrix - (u[:, :8] * s[:8]) @ vt[:8]).norm())
    total = float(matrix.square().sum())
    assert (
        rest**2 <= total - float(s[:8].square().sum()) + 1e-3 * total and rest < 0.011 * (2100 * 2200) ** 0.5
    )
