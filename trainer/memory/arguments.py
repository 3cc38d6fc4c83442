"""The arguments of a call without their tensors, for a call that is made again with the values that backward has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class _TensorArgument:
    """Stands for the tensor argument of that number."""

    number: int


def without_tensors(value: Any, tensors: list[Tensor], wanted: Callable[[Tensor], bool]) -> Any:
    """A copy of the containers in `value` with a _TensorArgument for each wanted tensor; those tensors are appended to
    `tensors`."""
    if isinstance(value, Tensor) and wanted(value):
        tensors.append(value)
        return _TensorArgument(len(tensors) - 1)
    if type(value) is dict:
        return {k: without_tensors(v, tensors, wanted) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_tensors(v, tensors, wanted) for v in value)
    return value


def with_tensors(value: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse, as a further copy."""
    if isinstance(value, _TensorArgument):
        return tensors[value.number]
    if type(value) is dict:
        return {k: with_tensors(v, tensors) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(with_tensors(v, tensors) for v in value)
    return value
