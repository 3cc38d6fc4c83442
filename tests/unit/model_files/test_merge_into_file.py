"""LoRAs into a model file tensor by tensor, and out of the difference of two files."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import KilnError
from trainer.lora_files.formulas import group_by_layer, merged_weight
from trainer.lora_files.lora_weights import LoraWeights
from trainer.model_files.extract_lora import extract_lora
from trainer.model_files.fp8_rounding import from_fp8, largest_by_row, to_fp8
from trainer.model_files.merge_into_file import WeightedLora, merge_into_file

PRE = "model.diffusion_model."
LAYERS = ("blocks.0.self_attn.q", "blocks.1.ffn.0")
OURS = "diffusion_model."


def base_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    tensors = {f"{PRE}{layer}.weight": torch.randn(48, 32, generator=g).to(dtype) for layer in LAYERS}
    tensors[f"{PRE}blocks.0.self_attn.q.bias"] = torch.randn(48, generator=g)
    tensors["other.weight"] = torch.randn(7, 3, generator=g)
    return tensors


def lora(alpha: float = 2.0, rank: int = 4, seed: int = 1) -> LoraWeights:
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        tensors[f"{OURS}{layer}.lora_A.weight"] = 0.1 * torch.randn(rank, 32, generator=g)
        tensors[f"{OURS}{layer}.lora_B.weight"] = 0.1 * torch.randn(48, rank, generator=g)
        tensors[f"{OURS}{layer}.alpha"] = torch.tensor(alpha)
    return LoraWeights(tensors)


def merged(
    tmp_path: Path, tensors: dict[str, Tensor], *loras: tuple[LoraWeights, float], **options: str
) -> Path:
    save_file(tensors, tmp_path / "base.safetensors", {"format": "pt", "author": "someone"})
    target = tmp_path / "out" / "merged.safetensors"
    merge_into_file(tmp_path / "base.safetensors", target, [WeightedLora(x, s) for x, s in loras], **options)
    return target


def test_is_the_sum_by_the_formula(tmp_path: Path) -> None:
    base, one, two = base_tensors(), lora(), lora(alpha=3.0, rank=2, seed=2)
    out = load_file(merged(tmp_path, base, (one, 0.85), (two, -0.5)))
    assert list(out) == list(base) or out.keys() == base.keys()
    for layer in LAYERS:
        expected = base[f"{PRE}{layer}.weight"].double()
        for each, strength, scale in ((one, 0.85, 2.0 / 4), (two, -0.5, 3.0 / 2)):
            a, b = (each[f"{OURS}{layer}.lora_{x}.weight"].double() for x in "AB")
            expected = expected + strength * scale * (b @ a)
        assert float((out[f"{PRE}{layer}.weight"] - expected).abs().max()) < 1e-6
    for name in ("other.weight", f"{PRE}blocks.0.self_attn.q.bias"):
        assert torch.equal(out[name], base[name])


def test_the_file_says_what_is_in_it(tmp_path: Path) -> None:
    path = merged(tmp_path, base_tensors(torch.bfloat16), (lora(), 0.85))
    with safe_open(path, "pt") as opened:
        assert opened.metadata()["author"] == "someone"
        assert json.loads(opened.metadata()["lora_kiln.merged"]) == [["LoRA", 0.85]]
        assert opened.get_tensor(f"{PRE}{LAYERS[0]}.weight").dtype == torch.bfloat16
    assert sorted(p.name for p in path.parent.iterdir()) == ["merged.safetensors"]


def test_other_types_and_other_families(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(3)
    name = f"{OURS}{LAYERS[1]}"
    dora = LoraWeights({**lora(), f"{name}.lora_magnitude_vector": torch.rand(48, generator=g) + 1})
    base = base_tensors(torch.float16)
    out = load_file(merged(tmp_path, base, (dora, 0.5), dtype="fp32"))
    expected = merged_weight(group_by_layer(dora)[name], base[f"{PRE}{LAYERS[1]}.weight"].float(), 0.5)
    assert torch.allclose(out[f"{PRE}{LAYERS[1]}.weight"], expected, atol=1e-6)
    assert {t.dtype for t in out.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_keeps_the_mean_of_a_small_update(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every value lies between fp8 numbers: to the nearest, an update of a hundredth would vanish whole."""
    values = torch.full((512, 512), 1.0)
    rounded = to_fp8(values * 1.01, dtype, "w").float()
    step = 0.125 if dtype == torch.float8_e4m3fn else 0.25
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + step}
    assert float(rounded.mean()) == pytest.approx(1.01, abs=1e-3)
    assert torch.equal(rounded, to_fp8(values * 1.01, dtype, "w").float())
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    every = every[every.isfinite()]
    # fp8 values stay what they are, subnormal ones too
    assert torch.equal(to_fp8(every.clone(), dtype, "w").float(), every)
    assert float(to_fp8(torch.tensor([1e9]), dtype, "w").float()) == torch.finfo(dtype).max


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_both_ways_against_torch(dtype: torch.dtype) -> None:
    """Every code is read as torch reads it; every value goes to one of the two fp8 numbers round it, in proportion."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = codes[codes.float().isfinite()]
    assert torch.equal(from_fp8(finite, torch.empty(len(finite)), 3.0), finite.float() * 3.0)
    assert (
        largest_by_row(finite.reshape(-1, 2)).tolist() == finite.float().reshape(-1, 2).abs().amax(1).tolist()
    )
    assert largest_by_row(codes.view(2, 128)).tolist() == [float("inf")] * 2
    ends = finite.float().unique()
    low, high = ends[:-1].repeat_interleave(2), ends[1:].repeat_interleave(2)
    share = torch.tensor([0.25, 0.7]).repeat(len(ends) - 1)
    values = torch.lerp(low, high, share)
    found = torch.stack([to_fp8(values.clone(), dtype, "w", block).float() for block in range(2000)])
    assert bool(((found == low) | (found == high)).all())
    assert float(((found == high).float().mean(0) - share).abs().max()) < 0.06  # 5 sigma
    far = torch.tensor([1e30, -1e30, 0.0, -0.0])
    assert to_fp8(far, dtype, "w").float().tolist() == [
        torch.finfo(dtype).max,
        -torch.finfo(dtype).max,
        0.0,
        0.0,
    ]


def test_fp8_draws_differ_between_blocks_and_repeat() -> None:
    halves = torch.full((2**16,), 1.0625)
    one, again, other = (to_fp8(halves.clone(), torch.float8_e4m3fn, "w", b).float() for b in (0, 0, 1))
    assert torch.equal(one, again)
    both = torch.corrcoef(torch.stack([one, other]))[0, 1]
    assert abs(float(both)) < 0.03
    long = to_fp8(
        torch.full(((1 << 21) + 5,), 1.0625), torch.float8_e4m3fn, "w"
    ).float()  # longer than the pool
    assert float(long.mean()) == pytest.approx(1.0625, abs=1e-3)


def test_fp8_that_is_no_number(tmp_path: Path) -> None:
    base = {k: t.to(torch.float8_e4m3fn) if k.endswith("q.weight") else t for k, t in base_tensors().items()}
    base[f"{PRE}{LAYERS[0]}.weight"].view(torch.uint8)[3, 4] = 0xFF
    with pytest.raises(KilnError, match=r"q.weight of base.safetensors holds values that are no numbers"):
        merged(tmp_path, base, (lora(), 1.0))
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("boost", [1.0, 60.0])
def test_scaled_fp8(tmp_path: Path, ending: str, boost: float) -> None:
    """Quantised again with the old scale where the values fit, with a larger one where they do not."""
    base, full = {}, base_tensors()
    for layer in LAYERS:
        weight = full[f"{PRE}{layer}.weight"]
        scale = weight.abs().max() / 448
        base[f"{PRE}{layer}{ending}"] = scale.reshape(1)
        base[f"{PRE}{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    base[f"{PRE}scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    path = merged(tmp_path, base, (lora(), boost))
    out = load_file(path)
    assert out.keys() == base.keys()
    for layer in LAYERS:
        a, b = (lora()[f"{OURS}{layer}.lora_{x}.weight"] for x in "AB")
        scale, name = base[f"{PRE}{layer}{ending}"], f"{PRE}{layer}.weight"
        expected = base[name].float() * scale + boost * 0.5 * (b @ a)
        found = out[name].float() * out[f"{PRE}{layer}{ending}"]
        assert float((found - expected).norm() / expected.norm()) < 0.06
        grown = bool(expected.abs().max() > 448 * scale)
        assert bool(out[f"{PRE}{layer}{ending}"] > scale) == grown
    wide = load_file(merged(tmp_path, base, (lora(), boost), dtype="bf16"))
    assert sorted(wide) == sorted(f"{PRE}{layer}.weight" for layer in LAYERS)
    a, b = (lora()[f"{OURS}{LAYERS[0]}.lora_{x}.weight"] for x in "AB")
    name = f"{PRE}{LAYERS[0]}"
    expected = base[f"{name}.weight"].float() * base[f"{name}{ending}"] + boost * 0.5 * (b @ a)
    assert torch.equal(wide[f"{name}.weight"], expected.bfloat16()) or torch.allclose(
        wide[f"{name}.weight"].float(), expected, rtol=1e-2, atol=1e-3
    )


def test_a_lora_for_something_else(tmp_path: Path) -> None:
    unet = LoraWeights(
        {
            "lora_unet_down_blocks_0_q.lora_A.weight": torch.ones(1, 4),
            "lora_unet_down_blocks_0_q.lora_B.weight": torch.ones(4, 1),
        }
    )
    with pytest.raises(
        KilnError, match=r"does not fit base.safetensors: it is for Stable Diffusion \(UNet\)"
    ):
        merged(tmp_path, base_tensors(), (unet, 1.0))
    wrong = LoraWeights({**lora(), f"{OURS}{LAYERS[0]}.lora_A.weight": torch.ones(4, 31)})
    with pytest.raises(KilnError, match=r"another size of model: .*q.weight is 48 x 31 in it and 48 x 32"):
        merged(tmp_path, base_tensors(), (wrong, 1.0))
    quantised = {**base_tensors(), f"{PRE}{LAYERS[0]}.weight": torch.zeros(48, 32, dtype=torch.int8)}
    with pytest.raises(KilnError, match=r"is quantised .*is I8\), which cannot be merged into"):
        merged(tmp_path, quantised, (lora(), 1.0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["n" * 300, "base.safetensors/x"])
def test_a_name_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    save_file(base_tensors(), tmp_path / "base.safetensors")
    with pytest.raises(KilnError, match=r"Cannot write .*check free space and write permission"):
        merge_into_file(tmp_path / "base.safetensors", tmp_path / name, [WeightedLora(lora(), 1.0)])
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_strength_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="The strength of LoRA is nan; give a number"):
        merged(tmp_path, base_tensors(), (lora(), float("nan")))
    assert not (tmp_path / "out").exists()


def test_abandoned_half_way_leaves_nothing(tmp_path: Path) -> None:
    def tick(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    save_file(base_tensors(), tmp_path / "base.safetensors")
    (tmp_path / "out.safetensors").write_bytes(b"the old one")
    with pytest.raises(KeyboardInterrupt):
        merge_into_file(
            tmp_path / "base.safetensors",
            tmp_path / "out.safetensors",
            [WeightedLora(lora(), 1.0)],
            tick=tick,
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "out.safetensors"]
    assert (tmp_path / "out.safetensors").read_bytes() == b"the old one"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_room_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A full disk ends the merge before anything is computed; a file system that cannot reserve does not."""
    ticks: list[int] = []

    def refuse(*_: int) -> None:
        raise OSError(number, "No")

    monkeypatch.setattr("os.posix_fallocate", refuse, raising=False)
    base, out = tmp_path / "base.safetensors", tmp_path / "out" / "out.safetensors"
    save_file(base_tensors(), base)

    def work() -> None:
        merge_into_file(base, out, [WeightedLora(lora(), 1.0)], tick=lambda done, total: ticks.append(done))

    if number == errno.EOPNOTSUPP:
        work()
        assert out.is_file()
        return
    with pytest.raises(KilnError, match=r"Cannot write .*; check free space"):
        work()
    assert not ticks and not list((tmp_path / "out").iterdir())


def test_memory_is_that_of_one_layer(tmp_path: Path) -> None:
    """Never more than a few blocks of 4 MB are alive, whatever the size of the file."""
    import gc
    import tracemalloc

    layers = [f"blocks.{i}.ffn.0" for i in range(24)]  # 96 MB
    save_file({f"{layer}.weight": torch.zeros(1024, 1024) for layer in layers}, tmp_path / "base.safetensors")
    tensors = {}
    for layer in layers:
        tensors[f"{OURS}{layer}.lora_A.weight"] = torch.ones(1, 1024)
        tensors[f"{OURS}{layer}.lora_B.weight"] = torch.ones(1024, 1)
    alive: list[int] = []

    def tick(done: int, total: int) -> None:
        gc.collect()
        alive.append(sum(t.nbytes for t in gc.get_objects() if type(t) is Tensor))

    tracemalloc.start()
    merge_into_file(
        tmp_path / "base.safetensors", tmp_path / "m", [WeightedLora(LoraWeights(tensors), 1.0)], tick=tick
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(alive) == 25 and max(alive) - min(alive) < 24 << 20 and peak < 8 << 20
    assert load_file(tmp_path / "m")["blocks.23.ffn.0.weight"].unique().item() == 1.0


def test_extract_gives_the_lora_back(tmp_path: Path) -> None:
    path = merged(tmp_path, base_tensors(), (lora(), 1.0))
    found, sentence = extract_lora(path, tmp_path / "base.safetensors", 4)
    assert sentence == "2 layers, 100.00 % of the energy kept"
    for layer in LAYERS:
        expected = 0.5 * lora()[f"{OURS}{layer}.lora_B.weight"] @ lora()[f"{OURS}{layer}.lora_A.weight"]
        ours = found[f"{OURS}{layer}.lora_B.weight"] @ found[f"{OURS}{layer}.lora_A.weight"]
        assert float((ours - expected).norm() / expected.norm()) < 1e-5
    with pytest.raises(KilnError, match="hold the same weights"):
        extract_lora(path, path, 4)


def test_extract_of_values_that_are_no_numbers(tmp_path: Path) -> None:
    base = base_tensors()
    save_file(base, tmp_path / "base.safetensors")
    base[f"{PRE}{LAYERS[0]}.weight"][0, 0] = torch.nan
    save_file(base, tmp_path / "tuned.safetensors")
    with pytest.raises(KilnError, match=r"self_attn.q.weight of tuned.safetensors or .* no numbers; get the"):
        extract_lora(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 4)


def test_extract_across_prefixes_keeps_biases(tmp_path: Path) -> None:
    base = base_tensors()
    bare = {k.removeprefix(PRE): t.clone() for k, t in base.items()}
    bare[f"{LAYERS[0]}.bias"] += 1.0
    save_file(base, tmp_path / "base.safetensors")
    save_file(bare, tmp_path / "tuned.safetensors")
    found, _ = extract_lora(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", 4)
    assert list(found) == [f"{OURS}{LAYERS[0]}.diff_b"]
    save_file({"x.weight": torch.ones(2, 2)}, tmp_path / "else.safetensors")
    with pytest.raises(KilnError, match="share no layer"):
        extract_lora(tmp_path / "else.safetensors", tmp_path / "base.safetensors", 4)


def test_diffusers_loads_the_folder(tmp_path: Path) -> None:
    """The tiny Wan with a LoRA, as diffusers reads it, equals diffusers' own conversion of the merged file."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    base = Path(__file__).parents[2] / "tiny_wan" / "models" / "tiny_wan.safetensors"
    weight = load_file(base)["blocks.1.self_attn.q.weight"]
    name = f"{OURS}blocks.1.self_attn.q"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(1, weight.shape[1]),
        f"{name}.lora_B.weight": torch.ones(len(weight), 1),
    }
    loras = [WeightedLora(LoraWeights(tensors), 0.01)]
    merge_into_file(base, tmp_path / "m.safetensors", loras)
    merge_into_file(base, tmp_path / "pipe", loras, layout="diffusers")
    model = WanTransformer3DModel.from_pretrained(
        tmp_path / "pipe", subfolder="transformer", torch_dtype=weight.dtype
    )
    expected = convert_wan_transformer_to_diffusers(load_file(tmp_path / "m.safetensors"))
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k].to(found[k].dtype)) for k in expected)
