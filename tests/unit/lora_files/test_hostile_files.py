"""Files that no tool writes: whatever is in a header or a layer, the answer is a LoRA or one bounded sentence."""

from __future__ import annotations

import json
import logging
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import MOST, KilnError
from trainer.lora_files.describe import as_text, describe
from trainer.lora_files.formulas import delta_weight, group_by_layer, kind_of, merged_weight
from trainer.lora_files.keys import FORMATS
from trainer.lora_files.merge import merge_loras
from trainer.lora_files.read import PeftScaling, read_lora
from trainer.lora_files.resize import resize
from trainer.lora_files.save import save_lora
from trainer.model_files.meta_model import read_shapes
from trainer.model_files.safetensors_file import SafetensorsFile

LAYER = "diffusion_model.blocks.0.self_attn.q"
BIG = settings(max_examples=120)


def refused(do: Callable[[], Any]) -> Any:
    """What it gives, or None after a sentence; anything else that it raises is a failure."""
    try:
        return do()
    except KilnError as error:
        assert len(str(error)) <= MOST and "\n" not in str(error)
        return None


def raw_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = entry([2, 4], [0, 32])


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry([1] * 100, [0, 4])}, "has 100 dimensions"),
        ({"a": entry([2**62, 0, 2**62], [0, 0])}, "has no shape|too large"),
        ({"a": entry([-2, -4], [0, 32])}, "has no shape"),
        ({"a": entry([2.0, 4.0], [0, 32])}, "has no shape"),
        ({"a": entry("2x4", [0, 32])}, "has no shape"),
        ({"a": entry([2, 4], [32, 0])}, "bytes, which are not those"),
        ({"a": entry([2, 5], [0, 32])}, "bytes, which are not those"),
        ({"a": entry([2, 4], [0])}, "unpack"),
        ({"a": [1, 2]}, "damaged"),
        ({"down_blocks." * 100: GOOD}, "it holds a name of 1200 characters"),
        ({str(number): GOOD for number in range(100_001)}, "it holds 100001 tensors"),
        ({"a": GOOD, "__metadata__": 5}, "its metadata are not texts"),
        ({"a": GOOD, "__metadata__": {"x": 1}}, "its metadata are not texts"),
        ({"a": GOOD, "__metadata__": {"x": ["y"]}}, "its metadata are not texts"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_impossible_headers(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    path = raw_file(tmp_path / "x.safetensors", json.dumps(header).encode(), b"\0" * 32)
    for read in (read_lora, describe, SafetensorsFile, read_shapes):
        with pytest.raises(KilnError, match=reason):
            read(path)  # type: ignore[operator]


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + b"9" * 4000 + b"]}}",
        b'{"' + b"n" * 500_000 + b'": 1}',
    ],
    ids=["nested objects", "nested lists", "5,000 digits", "4,000 digits", "a long name"],
)
def test_headers_that_would_break_a_parser(tmp_path: Path, header: bytes) -> None:
    path = raw_file(tmp_path / "x.safetensors", header, b"\0" * 32)
    for read in (read_lora, describe, SafetensorsFile):
        with pytest.raises(KilnError, match=r"is damaged|is cut off") as caught:
            read(path)  # type: ignore[operator]
        assert len(str(caught.value)) <= MOST


def test_numbers_that_we_do_not_compute_with_are_named(tmp_path: Path) -> None:
    header = json.dumps({"a": entry([2], [0, 16], "C64")}).encode()
    path = raw_file(tmp_path / "x.safetensors", header, b"\0" * 16)
    with SafetensorsFile(path) as file, pytest.raises(KilnError, match="'a' as 'C64', a kind of numbers"):
        file.read("a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "F8_E4M3", "BOOL", "F4", "x"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=70) | JSON,
        "data_offsets": st.tuples(st.integers(0, 40), st.integers(0, 40)).map(list) | JSON,
    }
)
HEADERS = st.dictionaries(st.sampled_from([f"{LAYER}.lora_A.weight", f"{LAYER}.alpha", "x"]), ENTRIES | JSON)


@BIG
@given(header=HEADERS, metadata=JSON, data=st.binary(max_size=60))
@example(header={"x": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}, metadata={}, data=b"")
def test_any_header(header: dict[str, Any], metadata: Any, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = json.dumps({**header, "__metadata__": metadata}).encode()
        path = raw_file(Path(folder) / "x.safetensors", content, data)
        refused(lambda: read_lora(path))
        refused(lambda: describe(path))
        refused(lambda: read_shapes(path))


@BIG
@given(
    config=st.dictionaries(
        st.sampled_from(["r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern"]), JSON
    )
)
def test_any_peft_config(config: dict[str, Any]) -> None:
    scaling = refused(lambda: PeftScaling(config, "x"))
    if scaling is not None:
        refused(lambda: scaling.alpha(LAYER, "q", 4))
        refused(lambda: scaling.unfactorised_scale(LAYER, "q"))


KINDS: list[dict[str, tuple[int, ...]]] = [
    {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "alpha": ()},
    {"lora_A.weight": (2, 6, 3, 3), "lora_B.weight": (4, 2, 1, 1)},
    {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "lora_mid.weight": (2, 2, 3, 3)},
    {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "dora_scale": (4, 1)},
    {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "dora_scale": (1, 6)},
    {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "lora_magnitude_vector": (4,)},
    {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "lora_B.bias": (4,)},
    {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "scalar": ()},
    {"hada_w1_a": (4, 2), "hada_w1_b": (2, 6), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6)},
    {"lokr_w1": (2, 2), "lokr_w2": (2, 3)},
    {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2_a": (2, 1), "lokr_w2_b": (1, 3), "alpha": ()},
    {"oft_blocks": (2, 2, 2), "alpha": ()},
    {"oft_blocks": (2, 2, 2), "rescale": (4, 1)},
    {"oft_R.weight": (2, 3)},
    {"diff": (4, 6), "diff_b": (4,)},
    {"set_weight": (4, 6)},
    {"w_norm": (4,), "b_norm": (4,)},
]
SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Tensor]:
    """A layer of a kind that exists, with up to two tensors of another shape, of another kind, or left out."""
    shapes: dict[str, tuple[int, ...]] = dict(draw(st.sampled_from(KINDS)))
    for _ in range(draw(st.integers(0, 2))):
        other = draw(st.sampled_from(KINDS))
        name = draw(st.sampled_from([*shapes, *other]))
        if name in shapes and len(shapes) > 1 and draw(st.booleans()):
            del shapes[name]
        else:
            shapes[name] = draw(SHAPES | st.just(other.get(name, ())))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.int64, torch.bool]))
    return {f"{LAYER}.{name}": torch.ones(shape).to(dtype) for name, shape in shapes.items()}


@settings(max_examples=300)
@given(state=layers())
def test_any_layer_is_used_or_refused(state: dict[str, Tensor]) -> None:
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = folder / "x.safetensors"
            save_file(state, path)
            lora = refused(lambda: read_lora(path))
            refused(lambda: as_text(describe(path)))
            if lora is None:
                return
            for tensors in group_by_layer(lora).values():
                kind_of(tensors)
                refused(lambda tensors=tensors: delta_weight(tensors))  # type: ignore[misc]
                for weight in (torch.randn(4, 6), torch.randn(4, 6, 3, 3), torch.randn(4, 4), torch.randn(4)):
                    refused(lambda tensors=tensors, weight=weight: merged_weight(tensors, weight, 0.7))  # type: ignore[misc]
            for format in FORMATS:
                refused(lambda format=format: save_lora(folder / "y.safetensors", lora, format=format))  # type: ignore[misc]
            refused(lambda: resize(lora, 2))
            for method in ("exact", "svd", "ties"):
                refused(lambda method=method: merge_loras([lora, lora], [0.5, 0.5], method, rank=2))  # type: ignore[misc]
    finally:
        logging.disable(logging.NOTSET)
