"""Every family and every spelling of LoRA files: read, applied and written, against peft and diffusers themselves."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import KilnError
from trainer.families import WAN
from trainer.lora_files import keys
from trainer.lora_files.formulas import group_by_layer, kind_of, merged_weight
from trainer.lora_files.keys import FORMATS
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.read import read_lora
from trainer.lora_files.save import save_lora

OURS = "diffusion_model."
LINEARS = ("blocks.0.self_attn.q", "blocks.1.ffn.0")


class Small(nn.Module):
    """Two linear layers and a convolution, under Wan's names."""

    def __init__(self) -> None:
        super().__init__()

        def block() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "self_attn": nn.ModuleDict({"q": nn.Linear(32, 48)}),
                    "ffn": nn.Sequential(nn.Linear(32, 48)),
                }
            )

        self.blocks = nn.ModuleList([block(), block()])
        self.patch_embedding = nn.Conv2d(8, 16, 3)


TARGETS = [*LINEARS, "patch_embedding"]
CONFIGS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False),
    "rslora": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, use_rslora=True
    ),
    "patterns": lambda: peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=TARGETS,
        init_lora_weights=False,
        rank_pattern={"blocks.0.self_attn.q": 2},
        alpha_pattern={"blocks.0.self_attn.q": 5},
    ),
    "dora": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, use_dora=True
    ),
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=TARGETS, init_weights=False),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=TARGETS, init_weights=False),
    "lokr whole": lambda: peft.LoKrConfig(r=64, alpha=32, target_modules=TARGETS, init_weights=False),
    "lokr both": lambda: peft.LoKrConfig(
        r=2, alpha=3, target_modules=TARGETS, init_weights=False, decompose_both=True, decompose_factor=6
    ),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, r=0, target_modules=list(LINEARS), init_weights=False),
}
FAMILY = {"dora": "DoRA", "loha": "LoHa", "oft": "OFT"}


def trained(kind: str) -> peft.PeftModel:
    torch.manual_seed(7)
    model = peft.get_peft_model(Small(), CONFIGS[kind]())
    for name, parameter in model.named_parameters():
        if "oft_R" in name:
            parameter.data.normal_(std=0.05)
        elif "lora_magnitude" in name:
            parameter.data.mul_(1 + 0.3 * torch.rand_like(parameter))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.filterwarnings("ignore")
def test_peft_s_families_by_our_formulas(kind: str, tmp_path: Path) -> None:
    """Read from peft's folder, applied by us, equal to peft's own merge; written by us, read by peft, equal again."""
    torch.manual_seed(7)
    base = {name: p.detach().clone() for name, p in Small().named_parameters()}
    model = trained(kind)
    model.save_pretrained(tmp_path / "theirs")
    expected = dict(model.merge_and_unload().named_parameters())
    lora = read_lora(tmp_path / "theirs")
    layers = group_by_layer(lora)
    assert {kind_of(parts) for parts in layers.values()} == {
        FAMILY.get(kind, kind.split()[0].replace("lokr", "LoKr"))
    } or (kind in ("lora", "rslora", "patterns"))
    assert {k.removeprefix(OURS) for k in layers} == set(LINEARS if kind == "oft" else TARGETS)
    for layer, parts in layers.items():
        name = layer.removeprefix(OURS) + ".weight"
        ours = merged_weight(parts, base[name].double(), 1.0)
        assert float((ours - expected[name]).norm() / expected[name].norm()) < 1e-6, name
        half = merged_weight(parts, base[name].double(), 0.5)
        assert torch.allclose(half, base[name] + 0.5 * (ours - base[name]), atol=1e-9)
    if kind == "lokr both":
        return  # peft derives a layer's factors from one setting, which our names do not keep: read only
    folder = save_lora(tmp_path / "ours.safetensors", lora, format="peft", dtype="keep")
    torch.manual_seed(7)
    again = peft.PeftModel.from_pretrained(_diffusers_named(), folder)
    merged = dict(again.merge_and_unload().named_parameters())
    for name in expected:
        layer = name.rpartition(".")[0]
        theirs = keys.to_diffusers(layer) or layer
        assert torch.allclose(merged[name.replace(layer, theirs)], expected[name], atol=1e-6), name


def _diffusers_named() -> nn.Module:
    """The same model under diffusers' names, with the same start values."""
    model = Small()
    for block in model.blocks:
        block["attn1"] = nn.ModuleDict({"to_q": block["self_attn"]["q"]})
        net = nn.ModuleList([nn.ModuleDict({"proj": block["ffn"][0]})])
        del block["self_attn"], block["ffn"]
        block["ffn"] = nn.ModuleDict({"net": net})
    return model


def lora(alpha: float | None = 2.0) -> LoraWeights:
    g = torch.Generator().manual_seed(1)
    layers = ["blocks.0.self_attn.q", "blocks.0.cross_attn.k_img", "blocks.1.ffn.2", "time_projection.1"]
    tensors = {}
    for index, layer in enumerate(layers):
        tensors[f"{OURS}{layer}.lora_A.weight"] = torch.randn(4 + index, 16, generator=g)
        tensors[f"{OURS}{layer}.lora_B.weight"] = torch.randn(24, 4 + index, generator=g)
        if alpha is not None:
            tensors[f"{OURS}{layer}.alpha"] = torch.tensor(alpha + index)
    return LoraWeights(tensors, {"lora_kiln.steps": "5"})


def scales(weights: LoraWeights) -> dict[str, float]:
    from trainer.lora_files.formulas import scale_of

    return {layer: scale_of(parts) for layer, parts in group_by_layer(weights).items()}


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_round_trips_lose_nothing(first: str, second: str, alpha: float | None, tmp_path: Path) -> None:
    start = lora(alpha)
    one = read_lora(save_lora(tmp_path / "one.safetensors", start, format=first, dtype="keep"))
    two = read_lora(save_lora(tmp_path / "two.safetensors", one, format=second, dtype="keep"))
    assert two.metadata["lora_kiln.steps"] == "5"
    assert scales(two) == scales(start)
    factors = [k for k in start if ".lora_" in k]
    assert [k for k in two if ".lora_" in k and k not in factors] == []
    assert all(torch.equal(two[k], start[k]) for k in factors)


@pytest.mark.parametrize("format", ["comfyui", "kohya"])
def test_other_families_round_trip(format: str, tmp_path: Path) -> None:
    for kind in ("dora", "loha", "lokr"):
        model = trained(kind)
        model.save_pretrained(tmp_path / kind)
        start = read_lora(tmp_path / kind)
        again = read_lora(save_lora(tmp_path / f"{kind}.safetensors", start, format=format, dtype="keep"))
        back = read_lora(save_lora(tmp_path / f"{kind} back.safetensors", again, format="peft", dtype="keep"))
        for key in (k for k in start if not k.endswith(".alpha")):
            assert torch.equal(back[key], start[key]), key
        assert scales(back) == scales(start)


SPELLINGS = {
    "ComfyUI's trainer": ("diffusion_model.blocks.0.self_attn.q", ".lora_down.weight", ".lora_up.weight"),
    "musubi": ("lora_unet_blocks_0_self_attn_q", ".lora_down.weight", ".lora_up.weight"),
    "Wan Fun": ("lora_unet__blocks_0_self_attn_q", ".lora_down.weight", ".lora_up.weight"),
    "diffusers": ("transformer.blocks.0.attn1.to_q", ".lora_A.weight", ".lora_B.weight"),
    "diffusers, flat": ("lora_transformer_blocks_0_attn1_to_q", ".lora_down.weight", ".lora_up.weight"),
    "diffusers, old": ("transformer.blocks.0.attn1.to_q", ".lora.down.weight", ".lora.up.weight"),
    "peft": ("base_model.model.blocks.0.self_attn.q", ".lora_A.weight", ".lora_B.weight"),
    "DiffSynth": ("blocks.0.self_attn.q", ".lora_A.default.weight", ".lora_B.default.weight"),
    "DiffSynth, new": ("pipe.dit.blocks.0.self_attn.q", ".lora_A.default.weight", ".lora_B.default.weight"),
    "whole name": ("model.diffusion_model.blocks.0.self_attn.q", ".lora_A.weight", ".lora_B.weight"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_tool_s_spelling(name: str, tmp_path: Path) -> None:
    layer, down, up = SPELLINGS[name]
    a, b = torch.randn(4, 16), torch.randn(24, 4)
    save_file(
        {layer + down: a, layer + up: b, f"{layer}.alpha": torch.tensor(2.0)}, tmp_path / "x.safetensors"
    )
    found = read_lora(tmp_path / "x.safetensors")
    ours = f"{OURS}blocks.0.self_attn.q"
    assert set(found) == {f"{ours}.lora_A.weight", f"{ours}.lora_B.weight", f"{ours}.alpha"}
    assert torch.equal(found[f"{ours}.lora_A.weight"], a) and torch.equal(found[f"{ours}.lora_B.weight"], b)


def test_finetrainers_keep_alpha_in_the_metadata(tmp_path: Path) -> None:
    tensors = {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 16)}
    tensors["transformer.blocks.0.attn1.to_q.lora_B.weight"] = torch.ones(24, 4)
    config = json.dumps({"r": 4, "lora_alpha": 12, "target_modules": "to_q"})
    save_file(tensors, tmp_path / "x.safetensors", {"lora_config": config})
    assert scales(read_lora(tmp_path / "x.safetensors")) == {f"{OURS}blocks.0.self_attn.q": 3.0}


def test_every_wan_layer_there_and_back() -> None:
    layers = [f"blocks.11.{inside}" for inside in WAN.blocks[0].layers or ()] + list(WAN.diffusers_outside)
    for layer in layers:
        assert keys.from_diffusers(keys.to_diffusers(layer) or "") == layer
    names = keys.lookup(layers)
    for layer in layers:
        spelled = {f"lora_unet_{keys.flat(layer)}", f"diffusion_model.{layer}", layer}
        assert set(keys.own_layers(spelled, names).values()) == {OURS + layer}


def test_names_of_other_models_need_its_layers() -> None:
    layers = ["double_blocks.0.img_attn.qkv", "single_blocks.3.linear_1"]  # with _ and . in it
    spelled = "lora_unet_single_blocks_3_linear_1"
    assert keys.own_layers([spelled]) == {spelled: spelled}
    assert keys.own_layers([spelled], keys.lookup(layers)) == {spelled: f"{OURS}single_blocks.3.linear_1"}
    assert keys.own_layers(["transformer.proj_out"]) == {"transformer.proj_out": "transformer.proj_out"}


def test_diffusers_loads_what_we_write(tmp_path: Path) -> None:
    """load_lora_adapter and the pipeline's loader put the very factors and scales into their model."""
    from diffusers import WanPipeline, WanTransformer3DModel

    g = torch.Generator().manual_seed(2)
    start = LoraWeights({})
    for layer, rank, alpha, out, width in (
        ("blocks.0.self_attn.q", 4, 2.0, 128, 128),
        ("blocks.0.cross_attn.o", 4, 2.0, 128, 128),
        ("blocks.0.ffn.2", 6, 9.0, 128, 64),
    ):
        start[f"{OURS}{layer}.lora_A.weight"] = torch.randn(rank, width, generator=g)
        start[f"{OURS}{layer}.lora_B.weight"] = torch.randn(out, rank, generator=g)
        start[f"{OURS}{layer}.alpha"] = torch.tensor(alpha)

    def model() -> Any:
        torch.manual_seed(0)
        return WanTransformer3DModel(
            num_attention_heads=1,
            attention_head_dim=128,
            text_dim=16,
            ffn_dim=64,
            num_layers=1,
            rope_max_seq_len=16,
        )

    path = save_lora(tmp_path / "d.safetensors", start, format="diffusers", dtype="keep")
    by_adapter, by_pipeline, base = model(), model(), model().state_dict()
    state, metadata = WanPipeline.lora_state_dict(str(path), return_lora_metadata=True)
    by_adapter.load_lora_adapter(dict(state), prefix="transformer", metadata=metadata)
    WanPipeline.load_lora_into_transformer(dict(state), by_pipeline, adapter_name="x", metadata=metadata)
    for loaded in (by_adapter, by_pipeline):
        loaded.fuse_lora()
        loaded.unload_lora()
        found = loaded.state_dict()
        for layer, parts in group_by_layer(start).items():
            name = f"{keys.to_diffusers(layer.removeprefix(OURS))}.weight"
            assert torch.allclose(found[name], merged_weight(parts, base[name], 1.0), atol=1e-5), name


GOOD: dict[str, Tensor] = dict(lora(None))


@pytest.mark.parametrize("length", [0x3080, 0x4B50], ids=["as a pickle", "as a zip"])
def test_a_header_may_be_as_long_as_others_files_begin(tmp_path: Path, length: int) -> None:
    """A safetensors file begins with the length of its header; 0x80 begins a pickle and PK a zip."""
    path = tmp_path / "x.safetensors"
    for padding in range(length - 2000, length, 4):  # the writer brings lengths to a multiple of 8
        save_file(GOOD, path, {"workflow": "x" * padding})
        if path.read_bytes()[:2] == length.to_bytes(2, "little"):
            break
    assert path.read_bytes()[:8] == length.to_bytes(8, "little")
    assert read_lora(path).keys() == GOOD.keys()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "There is no file x.safetensors"),
        (lambda p: p.write_bytes(b""), r"is not a safetensors file \(0 bytes\)"),
        (lambda p: p.write_text("<html>" * 50), "is not a safetensors file"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is a pickled file .* which can run code"),
        (lambda p: torch.save({"a": torch.ones(1)}, p), "is a pickled file"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
        (lambda p: cut(p, 20), "is cut off in its header|is not a safetensors file"),
        (lambda p: cut(p, -100), r"is cut off: it has \d+ of \d+ bytes; download or copy it again"),
        (
            lambda p: save_file({k: t * torch.nan for k, t in GOOD.items()}, p),
            "holds values that are not numbers, in 8 of 8",
        ),
        (
            lambda p: save_file({"blocks.0.weight": torch.ones(3)}, p),
            "x.safetensors is not a LoRA: .*'blocks.0.weight'",
        ),
        (
            lambda p: save_file({k: t for k, t in GOOD.items() if "lora_A" in k}, p),
            "incomplete: .* lacks lora_B",
        ),
        (
            lambda p: save_file({**GOOD, f"{OURS}{LINEARS[0]}.lora_B.weight": torch.ones(48, 3)}, p),
            "is damaged: the layer .* cannot be right, lora_A has rank 4 and lora_B 3; download",
        ),
        (
            lambda p: save_file({**GOOD, f"{OURS}{LINEARS[0]}.alpha": torch.ones(2)}, p),
            "cannot be right, its alpha is not one number",
        ),
        (
            lambda p: save_file({f"{OURS}{LINEARS[0]}.hada_w1_a": torch.ones(48, 3)}, p),
            "cannot be right, its tensors are incomplete",
        ),
        (
            lambda p: peft_folder(p, []),
            r"x.safetensors/adapter_config.json is damaged \(it holds no fields\)",
        ),
        (
            lambda p: peft_folder(p, {"r": 4, "lora_alpha": 4, "alpha_pattern": {"[": 3}}),
            r"The pattern '\[' in adapter_config.json is not a valid regular expression",
        ),
        (lambda p: p.mkdir(), "is no peft adapter: it needs adapter_config.json"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "x.safetensors")
    with pytest.raises(KilnError, match=message):
        read_lora(tmp_path / "x.safetensors")


def peft_folder(path: Path, config: Any) -> None:
    path.mkdir()
    save_file(GOOD, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_header_whose_length_looks_like_a_pickle(start: bytes, tmp_path: Path) -> None:
    """One header in 32 has a length whose first byte is that of a pickle."""
    save_file(GOOD, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    wanted = int.from_bytes(start, "little")
    wanted += -(-max(0, length - wanted) // 256 ** len(start)) * 256 ** len(start)
    padded = (
        wanted.to_bytes(8, "little") + whole[8 : 8 + length] + b" " * (wanted - length) + whole[8 + length :]
    )
    (tmp_path / "x.safetensors").write_bytes(padded)
    assert padded.startswith(start)
    assert read_lora(tmp_path / "x.safetensors").keys() == GOOD.keys()


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    save_lora(tmp_path / "mine.safetensors", GOOD, format="peft")
    save_lora(tmp_path / "mine.safetensors", GOOD, format="peft")
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(KilnError, match="holds other files than a peft adapter's, which would be lost"):
        save_lora(tmp_path / "mine.safetensors", GOOD, format="peft")
    assert (tmp_path / "mine" / "holiday.jpg").is_file() and len(list(tmp_path.iterdir())) == 1


def cut(path: Path, at: int) -> None:
    save_file(GOOD, path)
    path.write_bytes(path.read_bytes()[:at])


def test_a_format_that_cannot_hold_it_writes_nothing(tmp_path: Path) -> None:
    trained("loha").save_pretrained(tmp_path / "loha")
    with pytest.raises(KilnError, match="diffusers loads LoRA and DoRA only"):
        save_lora(tmp_path / "out.safetensors", read_lora(tmp_path / "loha"), format="diffusers")
    trained("oft").save_pretrained(tmp_path / "oft")
    with pytest.raises(KilnError, match="is an OFT of peft's kind, which only peft reads"):
        save_lora(tmp_path / "out.safetensors", read_lora(tmp_path / "oft"), format="kohya")
    assert not list(tmp_path.glob("out*"))


def test_alpha_survives_a_narrow_type(tmp_path: Path) -> None:
    path = save_lora(tmp_path / "x.safetensors", lora(), dtype="bf16")
    found = load_file(path)
    assert found[f"{OURS}time_projection.1.alpha"].dtype == torch.float32
    assert found[f"{OURS}time_projection.1.lora_A.weight"].dtype == torch.bfloat16
