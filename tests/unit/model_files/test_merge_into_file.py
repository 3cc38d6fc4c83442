"""LoRAs into a model file tensor by tensor, and out of the difference of two files."""

from __future__ import annotations

import errno
import json
import math
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
from trainer.model_files.fp8_rounding import to_fp8
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


def test_fp16_overflow_is_named(tmp_path: Path) -> None:
    base = {name: t.half() for name, t in base_tensors().items()}
    with pytest.raises(
        KilnError, match=r"blocks.0.self_attn.q.weight would have values up to .*65504 at most"
    ):
        merged(tmp_path, base, (lora(), 1e8))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("strength", "dtype", "said"),
    [
        (1.0, torch.bfloat16, ""),
        (1e-5, torch.float32, ""),
        (1e-3, torch.bfloat16, "most of the change is lost in rounding: "),
        (1e-9, torch.bfloat16, "nothing is changed: "),
        (0.0, torch.float32, "nothing is changed: "),
    ],
)
def test_a_change_below_the_file_s_precision_is_named(
    tmp_path: Path, strength: float, dtype: torch.dtype, said: str
) -> None:
    save_file(base_tensors(dtype), tmp_path / "base.safetensors")
    loras = [WeightedLora(lora(), strength)]
    sentence = merge_into_file(tmp_path / "base.safetensors", tmp_path / "x.safetensors", loras)
    assert sentence.startswith("2 of 4 tensors changed") and said in sentence
    assert said or ";" not in sentence


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


def test_fp8_that_is_no_number(tmp_path: Path) -> None:
    base = {k: t.to(torch.float8_e4m3fn) if k.endswith("q.weight") else t for k, t in base_tensors().items()}
    base[f"{PRE}{LAYERS[0]}.weight"].view(torch.uint8)[3, 4] = 0xFF
    with pytest.raises(KilnError, match=r"q.weight of base.safetensors holds values that are no numbers"):
        merged(tmp_path, base, (lora(), 1.0))
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("plain", [True, False])
def test_what_fp8_without_a_scale_cannot_hold_is_counted(
    tmp_path: Path, dtype: torch.dtype, plain: bool
) -> None:
    """A plain LoRA is added block by block, other kinds to the whole weight."""
    base = {k: t.to(dtype) if k.endswith("weight") else t for k, t in base_tensors().items()}
    save_file(base, tmp_path / "base.safetensors")
    weight, limit = base[f"{PRE}{LAYERS[0]}.weight"].float(), torch.finfo(dtype).max
    change = torch.randn(48, 32, generator=torch.Generator().manual_seed(7)) * limit
    key = f"{OURS}{LAYERS[0]}"
    pair = {f"{key}.lora_A.weight": torch.eye(32), f"{key}.lora_B.weight": change}
    loras = [WeightedLora(LoraWeights(pair if plain else {f"{key}.diff": change}), 1.0)]
    half_a_step = {torch.float8_e4m3fn: 16.0, torch.float8_e5m2: 4096.0}[dtype]
    clipped = int(((weight + change).abs() > limit + half_a_step).sum())
    sentence = merge_into_file(tmp_path / "base.safetensors", tmp_path / "x.safetensors", loras)
    assert clipped > 300
    assert f"; {clipped} values of 1 tensors, the first {PRE}{LAYERS[0]}.weight, are greater than" in sentence
    assert all(t.float().abs().max() <= limit for t in load_file(tmp_path / "x.safetensors").values())
    loras = [WeightedLora(lora(), 1.0)]
    assert "clipped" not in merge_into_file(tmp_path / "base.safetensors", tmp_path / "y.safetensors", loras)


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


FP8_LAYER = f"{PRE}{LAYERS[0]}"
UNKNOWN_SCALES = {
    "of rows": (f"{FP8_LAYER}.scale_weight", (48,), "scale_weight of base.safetensors holds 48 scales"),
    "of rows, as a column": (f"{FP8_LAYER}.weight_scale", (48, 1), "weight_scale of .* holds 48 x 1 scales"),
    "none": (f"{FP8_LAYER}.weight_scale", (0,), "weight_scale of .* holds 0 scales"),
    "of blocks": (
        f"{FP8_LAYER}.weight_scale_inv",
        (),
        r"in fp8 with .*q\.weight_scale_inv, a scale of a kind",
    ),
    "of another name": (f"{FP8_LAYER}.scales", (), r"in fp8 with .*q\.scales, a scale of a kind"),
    "below the weight": (
        f"{FP8_LAYER}.weight.scale",
        (),
        r"in fp8 with .*q\.weight\.scale, a scale of a kind",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN_SCALES)
def test_scales_that_cannot_be_read_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    """The weights would be wrong without a word."""
    name, shape, said = UNKNOWN_SCALES[kind]
    base = base_tensors()
    base[f"{FP8_LAYER}.weight"] = base[f"{FP8_LAYER}.weight"].to(torch.float8_e4m3fn)
    base[name] = torch.ones(shape)
    with pytest.raises(KilnError, match=f"{said}.*; use the fp16 or bf16 file of the model"):
        merged(tmp_path, base, (lora(), 1.0))
    other = tmp_path / "other.safetensors"
    save_file(base_tensors(), other)
    with pytest.raises(KilnError, match=said):
        extract_lora(tmp_path / "base.safetensors", other, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
def test_a_scale_that_is_no_number_is_refused_by_name(tmp_path: Path, ending: str, value: float) -> None:
    base = base_tensors()
    base[f"{FP8_LAYER}.weight"] = base[f"{FP8_LAYER}.weight"].to(torch.float8_e4m3fn)
    base[f"{FP8_LAYER}{ending}"] = torch.tensor(value)
    said = rf"self_attn\.q\{ending} of base\.safetensors is {value}, by which no weight can be scaled; get the file"
    for dtype in ("base", "bf16"):
        with pytest.raises(KilnError, match=said):
            merged(tmp_path, base, (lora(), 1.0), dtype=dtype)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    save_file(base_tensors(), tmp_path / "other.safetensors")
    with pytest.raises(KilnError, match=said):
        extract_lora(tmp_path / "base.safetensors", tmp_path / "other.safetensors", 2)


@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
def test_a_scale_of_what_is_no_fp8_is_1_or_refused(tmp_path: Path, ending: str) -> None:
    """Files of scaled fp8 hold some layers as they were; a scale beside them that is not 1 would be dropped."""
    base = base_tensors(torch.bfloat16) | {f"{FP8_LAYER}{ending}": torch.tensor(1.0)}
    out = load_file(merged(tmp_path, base, (lora(), 1.0), dtype="fp32"))
    assert f"{FP8_LAYER}{ending}" not in out and out[f"{FP8_LAYER}.weight"].dtype == torch.float32
    base[f"{FP8_LAYER}{ending}"] = torch.tensor(2.0)
    for dtype in ("base", "fp32"):
        with pytest.raises(
            KilnError, match=r"in BF16 with .*q\.\w+, a scale that only fp8 has; use the fp16"
        ):
            merged(tmp_path, base, (lora(), 1.0), dtype=dtype)


def test_a_weight_of_zeros_may_have_the_scale_0(tmp_path: Path) -> None:
    base = base_tensors()
    base[f"{FP8_LAYER}.weight"] = torch.zeros(48, 32).to(torch.float8_e4m3fn)
    base[f"{FP8_LAYER}.weight_scale"] = torch.tensor(0.0)
    nothing = LoraWeights({k: t * ("lora_B" not in k) for k, t in lora().items()})
    for given, zero in ((lora(), False), (nothing, True)):
        out = load_file(merged(tmp_path, base, (given, 1.0)))
        found = out[f"{FP8_LAYER}.weight"].float() * out[f"{FP8_LAYER}.weight_scale"]
        assert found.isfinite().all() and bool(found.any()) != zero


DESCRIBED: dict[str, dict[str, Tensor]] = {
    "int8": {".weight_scale": torch.rand(48, 1), ".comfy_quant": torch.ones(9, dtype=torch.uint8)},
    "nvfp4": {
        ".weight_scale": torch.rand(48, 2).to(torch.float8_e4m3fn),
        ".weight_scale_2": torch.tensor(0.5),
        ".input_scale": torch.tensor(1.5),
        ".comfy_quant": torch.ones(9, dtype=torch.uint8),
    },
    "nf4": {
        ".weight.absmax": torch.rand(24),
        ".weight.quant_map": torch.rand(16),
        ".weight.quant_state.bitsandbytes__nf4": torch.ones(30, dtype=torch.uint8),
    },
    "gptq": {".scales": torch.rand(4, 48).half(), ".qzeros": torch.ones(4, 6, dtype=torch.int32)},
}
"""What lies beside or below a packed weight, by the way in which it is packed."""


@pytest.mark.parametrize("dtype", ["base", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", DESCRIBED)
def test_packed_weights_keep_all_that_describes_them(tmp_path: Path, kind: str, dtype: str) -> None:
    """They are copied as they are, whatever the type of the others becomes: without its scales a weight is wrong."""
    base, packed = base_tensors(), f"{PRE}blocks.7.ffn.2"
    base[f"{FP8_LAYER}.weight"] = base[f"{FP8_LAYER}.weight"].to(torch.float8_e4m3fn)
    base[f"{FP8_LAYER}.weight_scale"] = torch.tensor(2.0)
    values = torch.randint(0, 99, (48, 16), dtype=torch.int8 if kind == "int8" else torch.uint8)
    described = {f"{packed}{ending}": tensor for ending, tensor in DESCRIBED[kind].items()}
    described[f"{packed}.{'qweight' if kind == 'gptq' else 'weight'}"] = values
    base |= described | {f"{packed}.bias": torch.rand(48), "text.positions": torch.arange(5)}
    save_file(base, tmp_path / "base.safetensors")
    loras, path = [WeightedLora(lora(), 1.0)], tmp_path / "out.safetensors"
    sentence = merge_into_file(tmp_path / "base.safetensors", path, loras, dtype=dtype)
    out = load_file(path)
    dropped = set() if dtype == "base" else {f"{FP8_LAYER}.weight_scale"}
    assert out.keys() == base.keys() - dropped
    for name, tensor in described.items():
        found, given = (each.reshape(-1).view(torch.uint8) for each in (out[name], tensor))
        assert out[name].dtype == tensor.dtype and torch.equal(found, given)
    assert ("1 quantised weights stay as they are, such as " in sentence) == (dtype != "base")
    with pytest.raises(
        KilnError, match=r"is quantised \(.*blocks\.7.* is U?I?8\), which is not written for diff"
    ):
        merge_into_file(tmp_path / "base.safetensors", tmp_path / "folder", loras, layout="diffusers")


def test_kinds_of_numbers_that_torch_does_not_know_are_copied(tmp_path: Path) -> None:
    save_file(
        base_tensors() | {f"{PRE}blocks.7.weight": torch.arange(64, dtype=torch.uint8)},
        tmp_path / "a.safetensors",
    )
    content = (tmp_path / "a.safetensors").read_bytes()
    assert content.count(b'"dtype":"U8"') == 1
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header[f"{PRE}blocks.7.weight"] |= {"dtype": "F8_E8M0"}
    text = json.dumps(header).encode()
    (tmp_path / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    loras = [WeightedLora(lora(), 1.0)]
    sentence = merge_into_file(tmp_path / "b.safetensors", tmp_path / "c.safetensors", loras, dtype="bf16")
    written = (tmp_path / "c.safetensors").read_bytes()
    assert bytes(range(64)) in written and b"F8_E8M0" in written and "1 quantised weights stay" in sentence


def test_the_base_s_metadata_comes_without_the_paths_of_a_machine(tmp_path: Path) -> None:
    told = {
        "format": "pt",
        "modelspec.title": "a model",
        "ss_output_dir": "/home/me/models/out",
        "note": "see C:\\u\\me\\x",
    }
    save_file(base_tensors(), tmp_path / "base.safetensors", told)
    loras = [WeightedLora(lora(), 1.0, "/home/me/loras/a.safetensors")]
    merge_into_file(tmp_path / "base.safetensors", tmp_path / "x.safetensors", loras)
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        found = opened.metadata()
    assert found["modelspec.title"] == "a model" and found["ss_output_dir"] == "out"
    assert "/home" not in json.dumps(found) and "C:" not in json.dumps(found)
    assert json.loads(found["lora_kiln.merged"]) == [["a.safetensors", 1.0]]


@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
def test_fp8_that_is_called_otherwise_has_its_scale_too(tmp_path: Path, ending: str) -> None:
    name, change = f"{PRE}blocks.0.modulation", torch.full((1, 6, 8), 0.25)
    base = base_tensors() | {
        name: torch.ones(1, 6, 8).to(torch.float8_e4m3fn),
        f"{name}{ending}": torch.tensor(2.0),
        f"{PRE}blocks.0.scale_shift_table": torch.ones(2),
    }
    difference = LoraWeights({f"{OURS}blocks.0.modulation.diff": change})
    out = load_file(merged(tmp_path, base, (difference, 1.0), dtype="fp32"))
    assert torch.equal(out[name], torch.full((1, 6, 8), 2.25))
    base[f"{name}_scale"] = base.pop(f"{name}{ending}")
    with pytest.raises(
        KilnError, match=r"holds .*modulation in fp8 with .*modulation_scale, a scale of a kind"
    ):
        merged(tmp_path, base, (difference, 1.0), dtype="fp32")


@pytest.mark.parametrize("beside", ["scale_input", "input_scale", "scale_shift_table", "bias_scale"])
def test_scales_of_something_else_are_not_the_weight_s(tmp_path: Path, beside: str) -> None:
    base = base_tensors()
    base[f"{FP8_LAYER}.weight"] = base[f"{FP8_LAYER}.weight"].to(torch.float8_e4m3fn)
    plain = load_file(merged(tmp_path, base, (lora(), 1.0)))
    found = load_file(
        merged(tmp_path, base | {f"{FP8_LAYER}.{beside}": torch.full((3,), 7.0)}, (lora(), 1.0))
    )
    assert torch.equal(found[f"{FP8_LAYER}.weight"].float(), plain[f"{FP8_LAYER}.weight"].float())


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


DIFFERENCES = {
    "diff_b": (48,),
    "diff_b of a row": (1, 48),
    "diff_b of a column": (48, 1),
    "b_norm": (48, 1),
    "diff": (48, 32),
    "diff of a kernel": (48, 32, 1, 1),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_differences_with_dimensions_of_one(tmp_path: Path, kind: str) -> None:
    """Each value goes where it belongs, and none is broadcast."""
    part, shape = kind.split()[0], DIFFERENCES[kind]
    change = LoraWeights({f"{OURS}{LAYERS[0]}.{part}": torch.randn(shape)})
    base = base_tensors()
    out = load_file(merged(tmp_path, base, (change, 0.5)))
    name = f"{PRE}{LAYERS[0]}.{'weight' if part == 'diff' else 'bias'}"
    expected = base[name] + 0.5 * next(iter(change.values())).reshape(base[name].shape)
    torch.testing.assert_close(out[name], expected)


@pytest.mark.parametrize(
    ("part", "shape", "said"),
    [
        ("diff_b", (1,), "q.bias is 1 in it and 48 in base"),
        ("diff_b", (47,), "q.bias is 47 in it and 48 in base"),
        ("diff_b", (6, 8), "q.bias is 6 x 8 in it and 48 in base"),
        ("b_norm", (49,), "q.bias is 49 in it and 48 in base"),
        ("diff", (24, 64), "q.weight is 24 x 64 in it and 48 x 32 in base"),
        ("diff", (32, 48), "q.weight is 32 x 48 in it and 48 x 32 in base"),
        ("w_norm", (48,), "q.weight is 48 in it and 48 x 32 in base"),
    ],
)
def test_differences_of_another_shape_are_refused(
    tmp_path: Path, part: str, shape: tuple[int, ...], said: str
) -> None:
    change = LoraWeights({f"{OURS}{LAYERS[0]}.{part}": torch.ones(shape)})
    with pytest.raises(KilnError, match=f"^LoRA is for another size of model: .*{said}"):
        merged(tmp_path, base_tensors(), (change, 1.0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["diff", "set_weight"])
def test_a_whole_weight_is_not_turned_into_another_shape(part: str) -> None:
    with pytest.raises(KilnError, match=r"of shape \(4, 16\), the model's is \(8, 8\)"):
        merged_weight({part: torch.ones(4, 16)}, torch.ones(8, 8), 1.0)


def test_layers_of_the_text_encoder_are_named(tmp_path: Path) -> None:
    layer = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    text = {f"{layer}.lora_A.weight": torch.ones(2, 768), f"{layer}.lora_B.weight": torch.ones(768, 2)}
    save_file(base_tensors(), tmp_path / "base.safetensors")
    both = WeightedLora(LoraWeights({**lora(), **text}), 1.0)
    sentence = merge_into_file(tmp_path / "base.safetensors", tmp_path / "out.safetensors", [both])
    assert sentence.endswith("; 1 layers are the text encoder's, which is not merged into this file")
    assert "fit nothing" not in sentence


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
