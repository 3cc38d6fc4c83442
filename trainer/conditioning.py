"""One item's conditioning as the graph has it, kept whole: in memory a dict of anything, on disk tensors and JSON.

    {"cross_attn": Tensor (1, L, D), "pooled_output": None, "guidance": 3.5, "reference_latents": [Tensor, ...], ...}

That is one entry of the host's CONDITIONING, its tensor under the name "cross_attn". Every value is kept as it is:
tensors of any shape and dtype, numbers, strings, booleans, None, lists, tuples and dicts of these, and the host's
clip_vision_output. A safetensors file holds the tensors, and its header the rest as JSON. Nothing is pickled and
nothing is left out: a value of another kind is an error that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import KilnError
from .parsers import parse_json

ItemConditioning = dict[str, Any]
"""One entry of a CONDITIONING; tensors have a batch dimension of 1 where the host gives them one."""

HEADER = "conditioning"  # the key of the JSON in a file's metadata

WHOLE_RANGE = {"start_percent": 0.0, "end_percent": 1.0, "clip_start_percent": 0.0, "clip_end_percent": 1.0}
"""Values that limit a conditioning to a part of the sampling's steps, as they are when they limit nothing."""

ONLY_SAMPLING = {
    **dict.fromkeys(WHOLE_RANGE, "makes it count in a part of the sampling's steps only"),
    **dict.fromkeys(
        ("timestep_start", "timestep_end"), "makes it count in a part of the sampling's steps only"
    ),
    **dict.fromkeys(("area", "mask"), "makes it count in a part of the picture only"),
    "default": "makes it count where no other one does",
    "hooks": "changes the weights of the model for it",
    "control": "applies a ControlNet to it",
    "gligen": "gives its words places in the picture",
}
"""Entries that tell the sampler where and when a conditioning counts; training has no such places and times."""

_SAFETENSORS_DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    }
)


class VisionOutput:
    """What a vision encoder says of a picture; values by name, as attributes and as items (the host's
    comfy.clip_vision.Output is such an object)."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)


def check_trainable(entry: Mapping[str, Any]) -> None:
    """Raise KilnError when the conditioning counts in a part of the picture or of the sampling only."""
    for name, what in ONLY_SAMPLING.items():
        value = entry.get(name)
        if value is not None and not (name in WHOLE_RANGE and value == WHOLE_RANGE[name]):
            raise KilnError(
                f"The conditioning has {name!r}, which {what}; an item is trained as a whole and at all its noise "
                "levels: connect the conditioning from before the node that added it."
            )


def pack(entry: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Tensors by number and everything else as JSON.

    Zero rows at the end of cross_attn are left out and counted: some text encoders pad with them (UMT5 to 512).

    Raises:
        KilnError: a value is of a kind that cannot be kept.
    """
    tensors: dict[str, Tensor] = {}

    def keep(tensor: Tensor, name: str) -> dict[str, Any]:
        _check_tensor(tensor, name)
        tensor, note = tensor.detach().cpu(), {}
        if name == "cross_attn" and tensor.ndim == 3 and tensor.numel():
            rows = tensor.ne(0).any(-1).any(0)
            used = int(rows.nonzero().max()) + 1 if bool(rows.any()) else 1
            note = {"rows": tensor.shape[1]}
            tensor = tensor[:, :used]
        number = str(len(tensors))
        tensors[number] = tensor.clone(memory_format=torch.contiguous_format)
        return {"tensor": number, **note}

    packed = [[name, _to_json(value, name, keep)] for name, value in entry.items()]
    return tensors, json.dumps(packed, allow_nan=False)


def unpack(tensors: Mapping[str, Tensor], text: str) -> ItemConditioning:
    """The inverse of pack.

    Raises:
        ValueError, KeyError, TypeError: these are not what pack gave.
    """
    return {name: _from_json(value, tensors) for name, value in parse_json(text)}


def names_of_entries(text: str) -> frozenset[str]:
    """The names in what pack wrote as JSON."""
    return frozenset(name for name, _ in parse_json(text))


def unpack_tensors_only(tensors: Mapping[str, Tensor]) -> ItemConditioning:
    """A file of earlier versions: tensors by name without their batch dimension, "length" the rows of cross_attn."""
    found = {name: tensor[None] for name, tensor in tensors.items() if name != "length"}
    if "length" in tensors:
        found["cross_attn"] = _pad_rows(found["cross_attn"], int(tensors["length"]))
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a conditioning or a part of one."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_in(inner)
    elif isinstance(value, VisionOutput):
        yield from tensors_in(vars(value))


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed; nothing is changed in place."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(inner, change) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)([map_tensors(inner, change) for inner in value])
    if isinstance(value, VisionOutput):
        return _vision({name: map_tensors(inner, change) for name, inner in vars(value).items()})
    return value


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same: type, structure, and every bit but the sign of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and _bytes_equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, VisionOutput):
        return equal(vars(a), vars(b))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def _bytes_equal(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    flat = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))  # nan is nan
    return torch.equal(*flat)


def _to_json(value: Any, name: str, keep: Callable[[Tensor, str], dict[str, Any]]) -> Any:
    """Objects of JSON are what JSON has no value for: each has one key that says what it is."""
    kind = type(value)
    if isinstance(value, Tensor):
        return keep(value, name)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if kind is dict:
        return {"dict": [[_key(k, name), _to_json(v, f"{name}.{k}", keep)] for k, v in value.items()]}
    if kind in (list, tuple):
        inner = [_to_json(v, f"{name}[{place}]", keep) for place, v in enumerate(value)]
        return inner if kind is list else {"tuple": inner}
    if kind is VisionOutput or (kind.__module__, kind.__name__) == ("comfy.clip_vision", "Output"):
        return {"vision": [[k, _to_json(v, f"{name}.{k}", keep)] for k, v in vars(value).items()]}
    raise KilnError(_unknown(name, f"of the kind {kind.__module__}.{kind.__qualname__}"))


def _from_json(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_from_json(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        return _pad_rows(tensor, value["rows"]) if "rows" in value else tensor
    kind, inner = next(iter(value.items()))
    if kind == "float":
        return float(inner)
    if kind == "tuple":
        return tuple(_from_json(v, tensors) for v in inner)
    if kind == "dict":
        return {k: _from_json(v, tensors) for k, v in inner}
    if kind == "vision":
        return _vision({k: _from_json(v, tensors) for k, v in inner})
    raise ValueError(f"unknown kind {kind!r}")


def _vision(values: dict[str, Any]) -> VisionOutput:
    found = VisionOutput()
    vars(found).update(values)
    return found


def _key(key: Any, name: str) -> str | int:
    if type(key) not in (str, int):
        raise KilnError(_unknown(name, f"a dict with a key of the kind {type(key).__name__}"))
    return key


def _check_tensor(tensor: Tensor, name: str) -> None:
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.dtype not in _SAFETENSORS_DTYPES:
        what = type(tensor).__name__ if type(tensor) is not Tensor else f"{tensor.layout} {tensor.dtype}"
        raise KilnError(_unknown(name, f"a tensor of the kind {what}"))


def _unknown(name: str, kind: str) -> str:
    return (
        f"The conditioning's {name!r} is {kind}, which cannot be kept on disk; connect the conditioning from before "
        "the node that adds it."
    )


def _pad_rows(rows: Tensor, length: int) -> Tensor:
    """(1, l, D) -> (1, length, D) with rows of zeros."""
    if rows.shape[1] == length:
        return rows
    padded = rows.new_zeros(rows.shape[0], length, *rows.shape[2:])
    padded[:, : rows.shape[1]] = rows
    return padded
