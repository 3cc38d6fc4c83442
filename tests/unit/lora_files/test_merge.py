"""Several LoRAs into one, and LoRAs of another rank: against dense matrices and against peft's own functions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch import Tensor

from trainer.errors import KilnError
from trainer.lora_files.formulas import delta_weight, group_by_layer
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.merge import METHODS, merge_dense, merge_loras
from trainer.lora_files.resize import resize

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


def test_exact_is_the_sum_of_the_products() -> None:
    merged, sentence = merge_loras([FIRST, SECOND], [0.7, -0.4])
    one, two = dense(FIRST), dense(SECOND)
    for name, found in dense(merged).items():
        assert close(found, 0.7 * one[name] - 0.4 * two[name])
    assert merged[f"{LAYER}.lora_A.weight"].shape == (10, 20) and merged[f"{CONV}.lora_A.weight"].shape == (
        10,
        4,
        3,
        3,
    )
    assert "exact of 2 LoRAs: 2 layers, rank 10, exact" in sentence


def test_layers_that_only_one_has() -> None:
    merged, _ = merge_loras([lora(4, 2.0, 1, conv=False), SECOND], [1.0, 0.5])
    assert close(dense(merged)[CONV], 0.5 * dense(SECOND)[CONV])


def test_svd_is_as_good_as_any_matrix_of_that_rank() -> None:
    merged, sentence = merge_loras([FIRST, SECOND], [1.0, 1.0], "svd", rank=3)
    lost, whole = 0.0, 0.0
    for name, found in dense(merged).items():
        target = (dense(FIRST)[name] + dense(SECOND)[name]).flatten(1)
        values = torch.linalg.svdvals(target)
        optimum = values[3:].square().sum().sqrt()
        assert float((found.flatten(1) - target).norm()) == pytest.approx(float(optimum), rel=1e-4)
        lost, whole = lost + float(optimum) ** 2, whole + float(values.square().sum())
    assert f"rank 3, {100 * (1 - lost / whole):.2f} % of the energy kept" in sentence


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("exact", "svd")])
def test_dense_arithmetic_is_peft_s(method: str) -> None:
    deltas = [dense(FIRST)[LAYER], dense(SECOND)[LAYER]]
    factor = torch.tensor([0.7, 0.4])
    torch.manual_seed(11)
    if method == "task_arithmetic":
        expected = merge_utils.task_arithmetic(deltas, factor)
    else:
        expected = getattr(merge_utils, method)(deltas, factor, 0.6)
    assert torch.equal(merge_dense(deltas, [0.7, 0.4], method, 0.6, 11), expected)


@pytest.mark.parametrize("method", METHODS)
def test_full_rank_result_is_the_dense_one(method: str) -> None:
    merged, _ = merge_loras([FIRST, SECOND], [0.7, 0.4], method, rank=20, density=0.6, seed=3)
    again, _ = merge_loras([FIRST, SECOND], [0.7, 0.4], method, rank=20, density=0.6, seed=3)
    assert all(torch.equal(merged[k], again[k]) for k in merged)
    if method.startswith("dare"):
        other, _ = merge_loras([FIRST, SECOND], [0.7, 0.4], method, rank=20, density=0.6, seed=4)
        assert not torch.equal(dense(merged)[LAYER], dense(other)[LAYER])
        return  # its draws belong to the layer; the arithmetic is checked above
    deltas = [dense(FIRST)[LAYER], dense(SECOND)[LAYER]]
    assert close(dense(merged)[LAYER], merge_dense(deltas, [0.7, 0.4], method, 0.6, 3), 1e-5)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    merge_loras([FIRST, SECOND], [1.0, 1.0], "dare_linear", rank=4)
    assert torch.equal(torch.rand(3), expected)


def test_other_families_through_svd() -> None:
    g = torch.Generator().manual_seed(1)
    shapes = {"w1_a": (24, 3), "w1_b": (3, 20), "w2_a": (24, 3), "w2_b": (3, 20)}
    loha = LoraWeights({f"{LAYER}.hada_{k}": torch.randn(*v, generator=g) for k, v in shapes.items()})
    with pytest.raises(KilnError, match="LoHa, which has no exact sum as a LoRA; choose the method svd"):
        merge_loras([loha, FIRST], [1.0, 1.0])
    merged, _ = merge_loras([loha, FIRST], [1.0, 1.0], "svd", rank=20)
    assert close(dense(merged)[LAYER], dense(loha)[LAYER] + dense(FIRST)[LAYER], 1e-5)


@pytest.mark.parametrize(
    ("second", "weights", "options", "message"),
    [
        (SECOND, [1.0], {}, "2 LoRAs and 1 weights were given"),
        (SECOND, [1.0, 1.0], {"method": "mean"}, "method is 'mean'; choose one of exact"),
        (SECOND, [1.0, 1.0], {"density": 0.0}, "density is 0.0; it must lie above 0"),
        (
            LoraWeights(
                {f"{LAYER}.lora_A.weight": torch.ones(2, 9), f"{LAYER}.lora_B.weight": torch.ones(24, 2)}
            ),
            [1.0, 1.0],
            {},
            r"different size: .*self_attn.q is \(24, 9\) and \(24, 20\)",
        ),
        (SECOND, [float("nan"), 1.0], {}, "A weight is nan; give each LoRA a number"),
        (SECOND, [1.0, 1.0], {"method": "svd", "rank": -1}, "rank is -1; it must be 0"),
        (
            LoraWeights({f"{LAYER}.hada_{k}": torch.ones(9, 9) for k in ("w1_a", "w1_b", "w2_a", "w2_b")}),
            [1.0, 1.0],
            {"method": "ties"},
            r"different size: .*self_attn.q is \(9, 9\) and \(24, 20\); merge LoRAs of one model",
        ),
        (
            LoraWeights({k.replace(LAYER, "lora_unet_down_blocks_0_proj_in"): t for k, t in SECOND.items()}),
            [1.0, 1.0],
            {},
            r"for different models, Stable Diffusion \(UNet\) and Wan; merge LoRAs of one model",
        ),
        (
            LoraWeights({**FIRST, f"{LAYER}.dora_scale": torch.ones(24, 1)}),
            [1.0, 1.0],
            {},
            "is DoRA, whose change depends on the model's own weight",
        ),
    ],
)
def test_what_cannot_be_merged(
    second: LoraWeights, weights: list[float], options: dict, message: str
) -> None:
    with pytest.raises(KilnError, match=message):
        merge_loras([FIRST, second], weights, **options)


@pytest.mark.parametrize("part", ["diff", "diff_b"])
@given(shapes=st.tuples(*[st.lists(st.integers(1, 6), min_size=1, max_size=4)] * 2))
@example(shapes=([16, 4], [8, 8]))
@example(shapes=([4, 1, 6], [4, 6, 1]))
def test_differences_are_added_only_where_each_value_has_its_place(
    part: str, shapes: tuple[list[int], list[int]]
) -> None:
    loras = [LoraWeights({f"{LAYER}.{part}": torch.ones(shape)}) for shape in shapes]
    if shapes[0][0] == shapes[1][0] and [n for n in shapes[0] if n > 1] == [n for n in shapes[1] if n > 1]:
        merged, _ = merge_loras(loras, [1.0, 2.0])
        assert torch.equal(merged[f"{LAYER}.{part}"], torch.full(shapes[0], 3.0))
        return
    if [n for n in shapes[0] if n > 1] == [n for n in shapes[1] if n > 1]:
        return  # a row and a column: either is right
    with pytest.raises(
        KilnError, match=r"different size: .* is \(.* and \(.*\); merge LoRAs of one model\.$"
    ):
        merge_loras(loras, [1.0, 2.0])


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (kind, method)
        for kind in ("factors", "alpha", "difference", "weight")
        for method in METHODS
        # Each factor is a number there; their product is never computed
        if method != "exact" or kind not in ("factors", "alpha")
    ],
)
def test_what_fp32_cannot_hold_is_refused_by_name(kind: str, method: str) -> None:
    """It became a file of nan and infinity, or an error of linear algebra."""
    tensors, weight = dict(FIRST), 3e38 if kind == "weight" else 1.0
    if kind == "factors":
        tensors = {k: t * (1 if k.endswith("alpha") else 1e30) for k, t in FIRST.items()}
    elif kind == "alpha":
        tensors[f"{LAYER}.alpha"] = torch.tensor(3e38)
    elif kind == "difference":
        tensors[f"{LAYER}.diff_b"] = torch.full((24,), 3e38)
    said = r"would have values that fp32 cannot hold: .*; take smaller weights"
    loras = [LoraWeights(tensors), LoraWeights(tensors)]
    with pytest.raises(KilnError, match=said):
        merge_loras(loras, [weight, weight], method, rank=2)
    if kind in ("factors", "alpha"):
        with pytest.raises(KilnError, match=said):
            resize(loras[0], 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["exact", "svd", "task_arithmetic"])
def test_what_is_only_rounding_is_named(dtype: torch.dtype, method: str) -> None:
    """A LoRA less its own copy in the precision of a file."""
    copy = LoraWeights({k: t.to(dtype).float() if "alpha" in k else t.to(dtype) for k, t in FIRST.items()})
    _, sentence = merge_loras([FIRST, copy], [1.0, -1.0], method)
    assert "cancel each other" in sentence
    _, sentence = merge_loras([FIRST, copy], [1.0, -0.97], method)
    assert "cancel" not in sentence, "a difference of three percent is one"
    _, sentence = merge_loras([FIRST, SECOND], [0.0, 0.0], method)
    assert "nothing is left" in sentence
