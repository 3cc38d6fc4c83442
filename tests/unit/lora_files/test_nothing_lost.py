"""Every tensor of a LoRA file of any tool is used, kept or named; see trainer/lora_files/plain_keys.py."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import KilnError
from trainer.lora_files.convert import convert_keys
from trainer.lora_files.describe import as_text, describe
from trainer.lora_files.formulas import changes_nothing, delta_weight, group_by_layer, is_zero
from trainer.lora_files.keys import PREFIX
from trainer.lora_files.read import read_lora, to_our_keys
from trainer.lora_files.save import save_lora
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


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def test_peft_s_bias_has_the_scale_of_its_layer() -> None:
    layer = "diffusion_model.blocks.0.self_attn.q"
    state = {**PARTS["bias"](layer), f"{layer}.alpha": torch.tensor(6.0)}
    found = to_our_keys(state)
    torch.testing.assert_close(found[f"{layer}.diff_b"], 3 * state[f"{layer}.lora_B.bias"])


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
