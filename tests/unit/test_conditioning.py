"""Whatever a conditioning holds comes back from the disk as it was; what cannot be kept is named."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from trainer.conditioning import VisionOutput, check_trainable, equal, map_tensors, pack, tensors_in
from trainer.dataset.batches import ItemStore, SampleDraw
from trainer.dataset.encoded import EncodedDataset, load_text, write_conditioning
from trainer.dataset.from_graph import encoded_from_latents
from trainer.errors import KilnError
from trainer.runs.runfile import RunFile, read_dataset, write_run_file

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of any shape and type, some with zero rows, some not contiguous, some views of others."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randn([*shape, 2], generator=rng).mul(3)
    values[..., 0] *= draw(st.sampled_from([0.0, 1.0]))
    tensor = values.to(torch.float32).to(dtype)[..., draw(st.integers(0, 1))]
    return tensor.movedim(0, -1) if draw(st.booleans()) and tensor.ndim > 1 else tensor


def vision(values: dict[str, Any]) -> VisionOutput:
    output = VisionOutput()
    for name, value in values.items():
        output[name] = value
    return output


plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(), tensors())
names = st.text(min_size=1, max_size=8)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(names, st.integers()), inner, max_size=3),
        st.dictionaries(names.map(lambda n: f"v{n}"), inner, max_size=3).map(vision),
    ),
    max_leaves=12,
)
only_sampling = {"area", "mask", "hooks", "control", "gligen", "default"}
extras = st.dictionaries(names.filter(lambda n: n not in only_sampling), values, max_size=6)


@settings(max_examples=150)
@given(extras=extras, rows=st.integers(0, 6), empty=st.integers(0, 6))
def test_nothing_of_a_conditioning_is_lost(extras: dict[str, Any], rows: int, empty: int) -> None:
    """From the node to the batch: over the cache of Encoded From Latents, and through the files of a run."""
    text = torch.cat([torch.randn(1, rows, 3), torch.zeros(1, empty, 3)], 1)
    latents = {"samples": torch.zeros(1, 4, 2, 2)}
    with tempfile.TemporaryDirectory() as folder:
        encoded = encoded_from_latents([latents], [[[text, extras]]], Path(folder) / "cache")
        write_run_file(Path(folder), RunFile(model={"loader": ""}), encoded)
        listed = read_dataset(Path(folder) / "dataset.json")
        assert listed.items == encoded.items and listed.fingerprint == encoded.fingerprint
        (item,) = ItemStore(listed.items).load([SampleDraw(0, 0, 0)]).items
        assert equal(item.conditioning, {**extras, "cross_attn": text})
        again = encoded_from_latents([latents], [[[text, extras]]], Path(folder) / "cache")
        assert again.encoded_now == 0 and again.items == encoded.items


@settings(max_examples=40)
@given(extras, extras)
def test_different_conditionings_have_different_addresses(a: dict[str, Any], b: dict[str, Any]) -> None:
    text = torch.ones(1, 2, 3)
    latents = {"samples": torch.zeros(2, 4, 2, 2)}
    with tempfile.TemporaryDirectory() as folder:
        encoded = encoded_from_latents([latents], [[[text, a], [text, b]]], Path(folder))
        for item, entry in zip(encoded.items, (a, b), strict=True):
            assert equal(load_text(item.text_path), {**entry, "cross_attn": text})


def test_equal_looks_at_kind_and_bits() -> None:
    one = torch.ones(2)
    assert equal({"a": [one, 1.0]}, {"a": [one.clone(), 1.0]}) and equal(float("nan"), float("nan"))
    for a, b in (
        (1, 1.0),
        (True, 1),
        ([one], (one,)),
        (one, one.half()),
        (one, one[None]),
        ({"a": 1}, {"b": 1}),
    ):
        assert not equal(a, b)
    assert equal(torch.tensor([float("nan")]), torch.tensor([float("nan")]))


class Grid:
    """Of another node pack."""


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("model", Grid, "of the kind .*test_conditioning.Grid"),
        ("parts", lambda: [{"deep": Grid()}], "of the kind .*Grid"),
        ("sparse", lambda: torch.eye(3).to_sparse(), "a tensor of the kind torch.sparse_coo"),
        ("shape only", lambda: torch.empty(3, device="meta"), "a tensor of the kind"),
        ("table", lambda: {(1, 2): 3}, "a dict with a key of the kind tuple"),
        ("raw", lambda: b"abc", "of the kind builtins.bytes"),
    ],
)
def test_what_cannot_be_kept_is_named(tmp_path: Path, name: str, value: Callable[[], Any], kind: str) -> None:
    latents = {"samples": torch.zeros(1, 4, 2, 2)}
    with pytest.raises(
        KilnError, match=f"The conditioning's '{name}.* is {kind}.*; connect the conditioning from"
    ):
        encoded_from_latents([latents], [[[torch.ones(1, 2, 3), {name: value()}]]], tmp_path)
    assert not list(tmp_path.rglob("texts/*/*")), "nothing half-written"


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("area", (8, 8, 0, 0), "in a part of the picture only"),
        ("mask", torch.ones(1, 8, 8), "in a part of the picture only"),
        ("start_percent", 0.2, "in a part of the sampling's steps only"),
        ("clip_end_percent", 0.5, "in a part of the sampling's steps only"),
        ("hooks", Grid(), "changes the weights of the model"),
        ("control", Grid(), "applies a ControlNet"),
        ("gligen", ("position", Grid()), "places in the picture"),
        ("default", True, "where no other one does"),
    ],
)
def test_what_only_sampling_has_is_refused(tmp_path: Path, name: str, value: Any, what: str) -> None:
    latents = {"samples": torch.zeros(1, 4, 2, 2)}
    with pytest.raises(KilnError, match=f"The conditioning has '{name}', which .*{what}.*: connect"):
        encoded_from_latents([latents], [[[torch.ones(1, 2, 3), {name: value}]]], tmp_path)


def test_limits_that_limit_nothing_pass() -> None:
    check_trainable(
        {"start_percent": 0.0, "end_percent": 1.0, "hooks": None, "strength": 0.5, "clip_start_percent": 0.0}
    )


def test_files_of_earlier_versions(tmp_path: Path) -> None:
    """Tensors by name without their batch dimension, the rows of zeros counted."""
    save_file(
        {
            "cross_attn": torch.ones(2, 3),
            "pooled_output": torch.full((4,), 2.0),
            "length": torch.tensor([5]),
        },
        tmp_path / "text.safetensors",
    )
    found = load_text(tmp_path / "text.safetensors")
    assert list(found) == ["cross_attn", "pooled_output"] and found["pooled_output"].tolist() == [[2.0] * 4]
    assert found["cross_attn"].shape == (1, 5, 3) and found["cross_attn"][0].sum(-1).tolist() == [
        3,
        3,
        0,
        0,
        0,
    ]


def test_padding_takes_no_room_on_disk(tmp_path: Path) -> None:
    text = torch.zeros(1, 512, 64)
    text[:, :3] = 1
    write_conditioning(tmp_path / "text.safetensors", {"cross_attn": text})
    assert (tmp_path / "text.safetensors").stat().st_size < 2000
    assert torch.equal(load_text(tmp_path / "text.safetensors")["cross_attn"], text)


def test_tensors_are_found_and_changed_wherever_they_are() -> None:
    entry = {
        "a": torch.ones(1),
        "b": [torch.ones(2), {"c": (torch.ones(3), None)}],
        "d": vision({"e": torch.ones(4), "f": "g"}),
    }
    assert [t.numel() for t in tensors_in(entry)] == [1, 2, 3, 4]
    doubled = map_tensors(entry, lambda t: t * 2)
    assert [float(t.sum()) for t in tensors_in(doubled)] == [2, 4, 6, 8]
    assert [float(t.sum()) for t in tensors_in(entry)] == [1, 2, 3, 4] and doubled["d"].f == "g"


def test_the_hosts_vision_output_is_known_by_its_name() -> None:
    """The engine does not import the host, whose class is this one."""
    output = type("Output", (), {"__module__": "comfy.clip_vision"})()
    output.image_embeds = torch.ones(1, 4)
    tensors, _ = pack({"clip_vision_output": output})
    assert len(tensors) == 1


def test_a_dataset_counts_what_it_keeps(tmp_path: Path) -> None:
    encoded = encoded_from_latents(
        [{"samples": torch.zeros(1, 4, 2, 2)}],
        [[[torch.ones(1, 2, 3), {"reference_latents": [torch.ones(1, 100)] * 3}]]],
        tmp_path,
    )
    assert isinstance(encoded, EncodedDataset)
    store = ItemStore(encoded.items, limit_bytes=1500)
    store.load([SampleDraw(0, 0, 0)])
    assert len(store.reader.kept) == 2 and store.reader.kept_bytes == 64 + 24 + 3 * 400
