"""Settings as other programs write them, in JSON, TOML, YAML or as command-line options, as a flat list of values."""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml

from ..errors import KilnError, shortened
from ..parsers import parse_json, parse_toml

Path = tuple[str, ...]
"""Sections and key: ("config", "process", "train", "lr"). A list of sections adds nothing to it."""

LONGEST = 100_000  # characters; the longest example files of other trainers have 10,000
MOST_VALUES, DEEPEST = 2_000, 40  # what YAML's references stand for counted each time

OPTION = re.compile(r"^--([A-Za-z][\w-]*)(?:=(.*))?$", re.DOTALL)


def read_text(text: str) -> list[tuple[Path, Any]]:
    """Every value of the text with its place, in order; of several sections in a list, the later ones follow.

    Raises:
        KilnError: it is none of these formats, holds no names, or is far larger than settings are.
    """
    if len(text) > LONGEST:
        raise KilnError(
            f"The settings have {len(text)} characters, {LONGEST} are the most; paste the settings file alone."
        )
    values = _parsed(text)
    _check_size(values)
    if not isinstance(values, dict):
        raise KilnError("The settings hold no 'name: value' lines; paste the file's text as it is.")
    return list(_flat(values, ()))


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)  # first: JSON that is indented with tabs is no YAML
    except ValueError:
        pass
    options = _options(text)
    if options:
        return options
    try:
        return parse_toml(text)
    except ValueError as error:
        no_toml = str(error)
    looks_like_toml = re.search(r"^[ \t]*[\w.-]+[ \t]*=", text, re.MULTILINE)
    try:
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind, fault = ("TOML", no_toml) if looks_like_toml else ("YAML", str(error))
        raise KilnError(
            f"The settings are not valid {kind} ({shortened(fault, 400)}); paste the file's text as it is."
        ) from error
    if not isinstance(values, dict) and looks_like_toml:
        raise KilnError(
            f"The settings are not valid TOML ({shortened(no_toml, 400)}); paste the file's text as it is."
        )
    return values


def _check_size(values: Any) -> None:
    """Raise KilnError for what no settings file is: a few references of YAML can stand for billions of values."""
    waiting, count = [(values, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        check_count(count, depth)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, set)) else ()
        waiting += [(each, depth + 1) for each in inner]


def check_count(count: int, depth: int = 0) -> None:
    """Raise KilnError for more values than settings have."""
    if count > MOST_VALUES or depth > DEEPEST:
        raise KilnError(
            f"The settings hold more than {MOST_VALUES} values or are nested more than {DEEPEST} deep; paste the "
            "settings file alone."
        )


def _options(text: str) -> dict[str, Any]:
    """`--network_dim 16 --fp8_base` of a script; nothing where no line has an option at a word's beginning."""
    if not re.search(r"(^|\s)--[A-Za-z]", text) or re.search(
        r"^[ \t]*[\w.-]+[ \t]*[:=]\s", text, re.MULTILINE
    ):
        return {}
    try:
        words = shlex.split(re.sub(r"[\\^`]\s*\n", " ", text), comments=True)
    except ValueError:  # quotes that are not closed
        return {}
    found: dict[str, list[Any]] = {}
    name = ""
    for word in words:
        option = OPTION.match(word)
        if option:
            name = option[1].replace("-", "_")
            found[name] = [] if option[2] is None else [option[2]]
        elif name:
            found[name].append(word)
    return {name: given if given[1:] else (given or [True])[0] for name, given in found.items()}


def _flat(values: dict[Any, Any], place: Path) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    for key, value in values.items():
        here = (*place, str(key))
        if isinstance(value, dict):
            found += _flat(value, here)
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for each in value:
                found += _flat(each, here)
        else:
            found.append((here, value))
    return found
