"""A setting is a dataclass field that knows its own range and explanation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from typing import Any

from ..errors import KilnError, shortened


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    options: tuple[str, ...] | None = None,
    multiline: bool = False,
) -> Any:
    """A dataclass field that knows its own range and explanation.

    Args:
        default: value when nothing is chosen.
        doc: tooltip; what it does, unit, useful range.
        minimum, maximum: inclusive range for numbers.
        step: widget increment for floats.
        options: allowed values for strings.
        multiline: a string of several lines.
    """
    info = {"doc": doc, "minimum": minimum, "maximum": maximum, "step": step, "options": options}
    info["multiline"] = multiline
    return field(default=default, metadata=info)


def field_info(config_class: type) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a config class by name, in order, nested configs left out."""
    return {f.name: f for f in dataclasses.fields(config_class) if "doc" in f.metadata}


def check_ranges(config: Any) -> None:
    """Raise KilnError for the first setting outside its range or options."""
    for name, f in field_info(type(config)).items():
        value, info = getattr(config, name), f.metadata
        if not _is_comparable(value, f.default):
            raise KilnError(
                f"{name} is {shortened(repr(value))}; it must be of the kind of {f.default!r} "
                f"({type(f.default).__name__})."
            )
        if info["options"] is not None and value not in info["options"]:
            raise KilnError(
                f"{name} is {shortened(repr(value))}; choose one of {', '.join(info['options'])}."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise KilnError(f"{name} is {value}; give a finite number.")
        low, high = info["minimum"], info["maximum"]
        if (low is not None and value < low) or (high is not None and value > high):
            raise KilnError(f"{name} is {shortened(str(value))}; it must lie between {low:g} and {high:g}.")


def _is_comparable(value: Any, default: Any) -> bool:
    """Whether a value that comes from a file is of the kind that is meant: a switch, a whole number, a number, text."""
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    if isinstance(default, int | float):
        whole = isinstance(default, int)
        return isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    return True
