"""Every tensor of a LoRA file of any tool is used, kept or named; see trainer/lora_files/plain_keys.py."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import KilnError
from trainer.lora_files.convert import convert_keys
from trainer.lora_files.describe import as_text, describe
from trainer.lora_files.formulas import changes_nothing, delta_weight, group_by_layer, is_zero
from trainer.lora_files.keys import PREFIX
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.merge import merge_loras
from trainer.lora_files.read import PeftScaling, read_lora, to_our_keys
from trainer.lora_files.resize import resize
from trainer.lora_files.save import save_lora
from trainer.model_files.merge_into_file import WeightedLora, merge_into_file
from trainer.safefile import is_safetensors

State = dict[str, Tensor]
LAYERS = ("self_attn.q", "cross_attn.k", "ffn.0")
BLOCK_LAYERS = [f"blocks.{block}.{layer}" for block in range(3) for layer in LAYERS]


def r(*shape: int) -> Tensor:
    return torch.randn(shape)


PARTS: dict[str, Callable[[str], State]] = {
    "lora": lambda x: {f"{x}.lora_A.weight": r(2, 8), f"{x}.lora_B.weight": r(8, 2)},
    "kohya": lambda x: {f"{x}.lora_down.weight": r(2, 8), f"{x}.lora_up.weight": r(8, 2), f"{x}.alpha": r()},
    "named": lambda x: {f"{x}.lora_A.mine.weight": r(2, 8), f"{x}.lora_B.mine.weight": r(8, 2)},
    "bias": lambda x: {**PARTS["lora"](x), f"{x}.lora_B.bias": r(8)},
    "dora": lambda x: {**PARTS["lora"](x), f"{x}.dora_scale": r(8, 1)},
    "loha": lambda x: {
        f"{x}.hada_w{i}": r(*((8, 2) if i[1:] == "_a" else (2, 8))) for i in ("1_a", "1_b", "2_a", "2_b")
    },
    "scalar": lambda x: {**PARTS["loha"](x), f"{x}.scalar": r()},
    "lokr": lambda x: {f"{x}.lokr_w1": r(2, 2), f"{x}.lokr_w2": r(4, 4)},
    "oft": lambda x: {f"{x}.oft_blocks": r(2, 4, 4)},
    "difference": lambda x: {f"{x}.diff": r(8, 8), f"{x}.diff_b": r(8)},
}
WRAPPERS = ("", "_orig_mod.", "_checkpoint_wrapped_module.", "module.")


@pytest.mark.parametrize("seed", range(60))
def test_used_and_named_are_all(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A random file: what is written again holds every number of it, but factors that were multiplied into others."""
    draws = random.Random(seed)
    torch.manual_seed(seed)
    wrapper = draws.choice(WRAPPERS)
    prefix = draws.choice(("diffusion_model.", "")) if wrapper == "module." else "diffusion_model."
    start = wrapper + prefix if wrapper == "module." else prefix + wrapper
    state: State = {}
    for layer in BLOCK_LAYERS:
        state |= PARTS[draws.choice(list(PARTS))](f"{start}{layer}")
    state |= {f"{start}blocks.{block}.diff_m": r(1, 6, 8) for block in range(3)}
    odd = {"bundle_emb.word.clip_l": r(2, 8), "something.else": r(3)}
    file = tmp_path / "x.safetensors"
    save_file({**state, **odd}, file)
    with caplog.at_level(logging.WARNING):
        lora = read_lora(file)
    assert all(name in caplog.text for name in odd)

    written = convert_keys(lora, "comfyui")
    values = {_bytes(t) for t in written.values()}
    for key, tensor in {**state, **odd}.items():
        if not key.endswith((".scalar", ".lora_B.bias", ".hada_w1_a")):
            assert _bytes(tensor) in values, key
    assert all(f"{PREFIX}blocks.{block}.modulation.diff" in written for block in range(3))
    layers = group_by_layer(lora)
    for key, tensor in state.items():
        layer = (
            PREFIX + next(name for name in BLOCK_LAYERS if f"{name}." in key) if ".diff_m" not in key else ""
        )
        if key.endswith(".lora_B.bias"):
            assert torch.equal(layers[layer]["diff_b"], tensor)
        if key.endswith(".scalar"):
            start = key.removesuffix("scalar")
            alone = delta_weight(
                {k.removeprefix(start): t for k, t in state.items() if k.startswith(f"{start}hada")}
            )
            found = delta_weight(layers[layer])
            assert alone is not None and found is not None
            torch.testing.assert_close(found, alone * tensor)


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations(("lora", "loha", "lokr", "oft", "difference"), 2))
)
def test_two_kinds_in_one_layer_are_refused(first: str, second: str) -> None:
    """ComfyUI would use one of them and drop the other."""
    layer = f"{PREFIX}blocks.0.self_attn.q"
    with pytest.raises(KilnError, match=rf"the layer {layer} cannot be right, it holds \w+ and \w+ at once"):
        to_our_keys({**PARTS[first](layer), **PARTS[second](layer)})
    norms = {f"{layer}.diff_b": r(8), f"{layer}.b_norm": r(8)}
    with pytest.raises(KilnError, match="it holds diff_b and b_norm at once"):
        to_our_keys(norms)


@pytest.mark.parametrize("other", ["lora", "loha"])
def test_a_difference_and_factors_merge_into_one(other: str) -> None:
    """Exactly as one difference, whatever the other is; at a rank as factors."""
    torch.manual_seed(1)
    layer = f"{PREFIX}blocks.0.self_attn.q"
    loras = [LoraWeights(to_our_keys(PARTS[kind](layer))) for kind in ("difference", other)]
    for method, names in (
        ("exact", {"diff", "diff_b"}),
        ("svd", {"lora_A.weight", "lora_B.weight", "diff_b"}),
    ):
        merged, _ = merge_loras(loras, [0.5, 2.0], method)
        assert group_by_layer(merged)[layer].keys() == names
        assert_same_changes(merged, [(loras[0], 0.5), (loras[1], 2.0)])


def test_norms_of_lycoris_merge_with_those_of_others() -> None:
    layer = f"{PREFIX}blocks.0.norm3"
    one, two = (
        {f"{layer}.w_norm": r(8), f"{layer}.b_norm": r(8)},
        {f"{layer}.diff": r(8), f"{layer}.diff_b": r(8)},
    )
    merged, _ = merge_loras([LoraWeights(to_our_keys(one)), LoraWeights(to_our_keys(two))], [1.0, -1.0])
    torch.testing.assert_close(merged[f"{layer}.diff"], one[f"{layer}.w_norm"] - two[f"{layer}.diff"])
    torch.testing.assert_close(merged[f"{layer}.diff_b"], one[f"{layer}.b_norm"] - two[f"{layer}.diff_b"])
    with pytest.raises(KilnError, match=r"norm3.diff_b is \(3,\) and \(8,\); merge LoRAs of one model"):
        merge_loras([LoraWeights(to_our_keys(two)), LoraWeights({f"{layer}.diff_b": r(3)})], [1.0, 1.0])


KEPT_BY_ALL = (
    "lora",
    "kohya",
    "named",
    "bias",
    "loha",
    "scalar",
    "lokr",
    "difference",
)  # by resize and merge


@pytest.mark.parametrize("seed", range(20))
def test_resized_and_merged_are_all_layers(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of random files: every layer is in the result, by its change, or its name is said."""
    draws = random.Random(seed)
    torch.manual_seed(seed)
    loras = []
    for number in range(2):
        layers = draws.sample(BLOCK_LAYERS, 5)
        state: State = {"bundle_emb.word.clip_l": r(2, 8), **{f"{PREFIX}blocks.7.diff_m": r(1, 6, 8)}}
        for layer in layers:
            state |= PARTS[draws.choice(KEPT_BY_ALL)](f"{PREFIX}{layer}")
        save_file({k: t.contiguous() for k, t in state.items()}, tmp_path / f"{number}.safetensors")
        loras.append(read_lora(tmp_path / f"{number}.safetensors"))
    smaller, _ = resize(loras[0], 8)
    assert "bundle_emb.word.clip_l" in smaller
    assert_same_changes(smaller, [(loras[0], 1.0)])
    with caplog.at_level(logging.WARNING):
        merged, _ = merge_loras(loras, [0.5, -2.0], "svd", rank=8)
    assert "bundle_emb.word.clip_l" in caplog.text
    assert_same_changes(merged, [(loras[0], 0.5), (loras[1], -2.0)])


def assert_same_changes(found: State, parts: list[tuple[State, float]]) -> None:
    """Of weights, and of biases."""
    grouped = [(group_by_layer(lora), weight) for lora, weight in parts]
    layers = {layer for group, _ in grouped for layer in group}
    assert group_by_layer(found).keys() == layers
    for layer, tensors in group_by_layer(found).items():
        of_layer = [(group[layer], weight) for group, weight in grouped if layer in group]
        changes = [(delta_weight(t), weight) for t, weight in of_layer]
        wanted = sum(change.flatten(1) * weight for change, weight in changes if change is not None)
        change = delta_weight(tensors)
        assert change is not None
        torch.testing.assert_close(change.flatten(1), wanted, atol=1e-4, rtol=1e-4)
        biases = [t["diff_b"] * weight for t, weight in of_layer if "diff_b" in t]
        if biases:
            torch.testing.assert_close(tensors["diff_b"].flatten(), sum(biases).flatten())


@pytest.mark.parametrize("seed", range(20))
def test_merged_into_a_file_or_named(seed: int, tmp_path: Path) -> None:
    """Of a random file into a model that lacks some of its layers: as many tensors change as are not named."""
    draws = random.Random(seed)
    torch.manual_seed(seed)
    base: State = {"blocks.0.modulation": r(1, 6, 8)}
    for layer in draws.sample(BLOCK_LAYERS, 6):
        base |= {f"{layer}.weight": r(8, 8), f"{layer}.bias": r(8)}
    save_file(base, tmp_path / "base.safetensors")
    state: State = {"bundle_emb.word.clip_l": r(2, 8), f"{PREFIX}blocks.0.diff_m": r(1, 6, 8)}
    for layer in BLOCK_LAYERS:
        state |= PARTS[draws.choice(list(PARTS))](f"{PREFIX}{layer}")
    save_file({k: t.contiguous() for k, t in state.items()}, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors")
    sentence = merge_into_file(
        tmp_path / "base.safetensors", tmp_path / "out.safetensors", [WeightedLora(lora, 1.0)]
    )
    out = load_file(tmp_path / "out.safetensors")
    changed = {name for name, tensor in base.items() if not torch.equal(out[name], tensor)}
    expected = {"blocks.0.modulation"}
    for layer, tensors in group_by_layer(lora).items():
        bare = layer.removeprefix(PREFIX)
        if f"{bare}.weight" in base:
            expected |= {f"{bare}.weight"} | ({f"{bare}.bias"} if "diff_b" in tensors else set())
    assert changed == expected
    left = 3 + 1  # layers that the model lacks, and the embedding
    assert sentence == (
        f"{len(changed)} of {len(base)} tensors changed; {left} layers fit nothing: {_listed(lora, base)}"
    )


def _listed(lora: State, base: State) -> str:
    lacking = [
        layer for layer in group_by_layer(lora) if not {f"{layer.removeprefix(PREFIX)}.weight"} & set(base)
    ]
    return ", ".join(["bundle_emb.word.clip_l", *[x for x in lacking if "modulation" not in x]][:3])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def test_peft_s_bias_has_the_scale_of_its_layer() -> None:
    layer = "diffusion_model.blocks.0.self_attn.q"
    state = {**PARTS["bias"](layer), f"{layer}.alpha": torch.tensor(6.0)}
    found = to_our_keys(state)
    torch.testing.assert_close(found[f"{layer}.diff_b"], 3 * state[f"{layer}.lora_B.bias"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("kind", [*PARTS, "factor", "bias and difference"])
def test_files_in_fp8_are_read_as_in_any_other_type(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """torch neither multiplies, adds nor compares fp8."""
    torch.manual_seed(3)
    layer = f"{PREFIX}blocks.0.self_attn.q"
    extra = {
        "factor": {**PARTS["lora"](layer), f"{layer}.scalar": torch.tensor(0.5)},
        "bias and difference": {**PARTS["bias"](layer), f"{layer}.diff_b": r(8)},
    }
    state = {k: t.to(dtype) for k, t in (extra.get(kind) or PARTS[kind](layer)).items()}
    save_file(state, tmp_path / "fp8.safetensors")
    save_file({k: t.float() for k, t in state.items()}, tmp_path / "fp32.safetensors")
    found, wide = (read_lora(tmp_path / f"{name}.safetensors") for name in ("fp8", "fp32"))
    assert found.keys() == wide.keys()
    for key in found:
        torch.testing.assert_close(found[key].float(), wide[key].float(), msg=key)
    assert is_zero(group_by_layer(found)[layer]) == is_zero(group_by_layer(wide)[layer])
    if kind not in ("dora", "oft"):  # these have no difference of their own
        method = "svd" if kind in ("loha", "scalar", "lokr") else "exact"
        assert_same_changes(merge_loras([found, found], [0.5, 0.5], method)[0], [(wide, 1.0)])


def test_the_scale_of_peft_s_lokr_in_fp8() -> None:
    layer = f"{PREFIX}blocks.0.self_attn.q"
    state = {k: t.to(torch.float8_e4m3fn) for k, t in PARTS["lokr"](layer).items()}
    found = to_our_keys(state, scaling=PeftScaling({"peft_type": "LOKR", "r": 4, "alpha": 8}, "x"))
    torch.testing.assert_close(found[f"{layer}.lokr_w1"], 2 * state[f"{layer}.lokr_w1"].float())


def test_two_adapters_in_one_file_are_refused() -> None:
    layer = "diffusion_model.blocks.0.self_attn.q"
    state = PARTS["named"](layer)
    other = {k.replace("mine", "yours").replace("self_attn", "cross_attn"): t for k, t in state.items()}
    with pytest.raises(KilnError, match="holds several adapters, mine, yours; save each as a file"):
        to_our_keys({**state, **other})


def test_a_control_lora_of_black_forest_labs() -> None:
    """As ComfyUI's own conversion makes it."""
    layers = {"img_in": (12, 8), "double_blocks.0.img_attn.qkv": (8, 24)}
    state: State = {}
    for layer, (width, out) in layers.items():
        state |= {
            f"{layer}.lora_A.weight": r(2, width),
            f"{layer}.lora_B.weight": r(out, 2),
            f"{layer}.lora_B.bias": r(out),
        }
    norm = "double_blocks.0.img_attn.norm.key_norm"
    state[f"{norm}.scale"] = r(4)
    found = to_our_keys(state)
    assert found[f"{PREFIX}img_in.reshape_weight"].tolist() == [8, 12]
    assert torch.equal(found[f"{PREFIX}{norm}.set_weight"], state[f"{norm}.scale"])
    assert torch.equal(found[f"{PREFIX}img_in.diff_b"], state["img_in.lora_B.bias"])


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_formats_without_a_place_refuse_or_say_so(format: str, caplog: pytest.LogCaptureFixture) -> None:
    layer = f"{PREFIX}blocks.0.self_attn.q"
    with pytest.raises(KilnError, match=f"{format} has no place for the change of a bias"):
        convert_keys(to_our_keys(PARTS["bias"](layer)), format)
    with caplog.at_level(logging.WARNING):
        convert_keys({**to_our_keys(PARTS["lora"](layer)), "bundle_emb.word.clip_l": r(2)}, format)
    assert "Not written" in caplog.text and "bundle_emb.word.clip_l" in caplog.text


@pytest.mark.parametrize("kind", sorted(PARTS))
def test_an_update_of_zero_is_recognised(kind: str) -> None:
    """Of every kind: with any one factor zero it changes nothing, with none it does."""
    torch.manual_seed(1)
    layer = f"{PREFIX}blocks.0.self_attn.q"
    whole = group_by_layer(to_our_keys(PARTS[kind](layer)))[layer]
    assert not is_zero(whole) and not changes_nothing({layer: whole})
    added = ("diff", "diff_b")
    factors = [n for n in whole if n not in ("alpha", "dora_scale", *added)]
    for name in factors:
        zero = {n: torch.zeros_like(t) if n in (name, *added) else t for n, t in whole.items()}
        assert is_zero(zero), name
        assert changes_nothing({layer: zero}) == (kind != "dora"), (
            "DoRA's magnitudes may differ from the model's"
        )
        assert not changes_nothing({layer: zero, "other": whole})
    if set(added) & set(whole):
        assert not is_zero({n: t if n == "diff_b" else torch.zeros_like(t) for n, t in whole.items()})


def test_differences_are_described_as_what_they_are(tmp_path: Path) -> None:
    layer = f"{PREFIX}blocks.0.self_attn.q"
    save_file({k: t.contiguous() for k, t in PARTS["difference"](layer).items()}, tmp_path / "x.safetensors")
    found = describe(tmp_path / "x.safetensors")
    assert (found["family"], found["rank"], found["alpha"]) == ({"difference": 1}, {"none": 1}, {"none": 1})
    assert "rank: none\n" in as_text(found) and "effect" not in as_text(found)
    save_file({f"{layer}.diff": torch.zeros(8, 8)}, tmp_path / "zero.safetensors")
    assert "effect: none: the update of every layer is zero" in as_text(
        describe(tmp_path / "zero.safetensors")
    )


@pytest.mark.parametrize("name", ["x.sft", "x.SAFETENSORS", "x.SFT", "my.v2.Safetensors"])
def test_endings_of_any_case(name: str, tmp_path: Path) -> None:
    layer = f"{PREFIX}blocks.0.self_attn.q"
    path = save_lora(tmp_path / name, to_our_keys(PARTS["lora"](layer)), dtype="keep")
    assert path.name == name and len(read_lora(path)) == 2
    assert is_safetensors(name) and not is_safetensors(f"{name}.pt")
