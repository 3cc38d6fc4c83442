"""The lowest versions that the tests are run against are the bounds that users get."""

from __future__ import annotations

import re

from packaging.requirements import Requirement

from scripts.host_files import REPO
from trainer.parsers import parse_toml


def bounds(lines: list[str]) -> dict[str, str]:
    """Package -> its lower bound, or the version that it is pinned to; without what has none."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        for each in requirement.specifier:
            if each.operator in (">=", "=="):
                found[requirement.name] = each.version
    return found


def lines_of(name: str) -> list[str]:
    text = (REPO / name).read_text("utf-8")
    return [line for raw in text.splitlines() if (line := re.sub(r"\s*#.*", "", raw).strip())]


def test_bounds_agree() -> None:
    declared = parse_toml((REPO / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    wanted, installed = bounds(declared), bounds(lines_of("requirements.txt"))
    assert {name: wanted[name] for name in installed} == installed
    lowest = bounds(lines_of("requirements-lowest.txt"))
    assert lowest.pop("transformers").startswith("4."), "ComfyUI's, and peft's"
    left_out = {"tomli", "torch"}  # of Python 3.10, the job has 3.11; the host's
    assert lowest.keys() == wanted.keys() - left_out
    for name, version in lowest.items():
        assert version == wanted[name] or version.startswith(f"{wanted[name]}."), name
