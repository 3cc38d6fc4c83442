"""Layer names of one family in its own words, in diffusers' and in kohya's; see trainer/families.py for the tables.

Some layers are several in diffusers: their rows one below the other. A part of a layer is written "<layer>[i]", the
i-th of them from above, until split_layers.py has put the parts together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..families import Blocks, Family

_PART = re.compile(r"^(.*)\[(\d)\]$")


def flat(name: str) -> str:
    """A layer's name as kohya writes it."""
    return name.replace(".", "_")


def part_name(layer: str, part: int) -> str:
    """The i-th part of a layer."""
    return f"{layer}[{part}]"


def split_part(name: str) -> tuple[str, int | None]:
    """Layer and part; None where the name is a whole layer's."""
    match = _PART.match(name)
    return (match[1], int(match[2])) if match else (name, None)


class FamilyNames:
    """The names of one family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._blocks = [_BlockNames(blocks, family.kohya_in_block) for blocks in family.blocks]
        self._outside = family.diffusers_outside
        self._outside_back = {
            spelling: own for own, theirs in self._outside.items() for spelling in (theirs, flat(theirs))
        }
        self._outside_flat = {flat(own): own for own in self._outside}

    def to_diffusers(self, name: str) -> tuple[str, ...] | None:
        """A layer's own name -> diffusers' names of its parts, mostly one; None when the tables lack it."""
        if name in self._outside:
            return (self._outside[name],)
        return next((found for blocks in self._blocks if (found := blocks.to_diffusers(name))), None)

    def part_widths(self, name: str) -> tuple[int, ...]:
        """Outputs by inputs of each part of a layer, by its own name."""
        parts = self.to_diffusers(name) or ()
        widths = self.family.part_widths
        return tuple(next((w for end, w in widths.items() if part.endswith(end)), 1) for part in parts)

    def to_kohya(self, name: str) -> tuple[str, ...]:
        """A layer's own name -> kohya's names of its parts, without prefix."""
        if self.family.kohya_like_diffusers:
            return tuple(map(flat, self.to_diffusers(name) or (name,)))
        renamed = (found for blocks in self._blocks if (found := blocks.to_kohya(name)))
        return (flat(next(renamed, name)),)

    def from_diffusers(self, name: str) -> str | None:
        """diffusers' name, dotted or flat -> our own, with its part where it is one."""
        if name in self._outside_back:
            return self._outside_back[name]
        return next((found for blocks in self._blocks if (found := blocks.from_diffusers(name))), None)

    def from_own(self, name: str) -> str | None:
        """Its own name, dotted or flat, or kohya's -> its own, dotted; None when the tables lack it."""
        if name in self._outside or name in self._outside_flat:
            return self._outside_flat.get(name, name)
        return next((found for blocks in self._blocks if (found := blocks.from_own(name))), None)


@dataclass(frozen=True)
class _Match:
    numbers: tuple[str, ...]
    inside: str


class _BlockNames:
    """The same for one list of blocks."""

    def __init__(self, blocks: Blocks, kohya: Mapping[str, str]) -> None:
        self._blocks, self._kohya = blocks, kohya
        self._own, self._diffusers = _pattern(blocks.own), _pattern(blocks.diffusers)
        self._back: dict[str, str] = {}  # both spellings of diffusers' names
        self._own_spellings: dict[str, str] = {}
        for own, theirs in (blocks.layers or {}).items():
            self._own_spellings |= {flat(own): own, flat(kohya.get(own, own)): own}
            parts = (theirs,) if isinstance(theirs, str) else theirs
            for i, part in enumerate(parts):
                self._back[flat(part)] = own if len(parts) == 1 else part_name(own, i)

    def to_diffusers(self, name: str) -> tuple[str, ...] | None:
        match = _match(self._own, name)
        if match is None:
            return None
        theirs = match.inside if self._blocks.layers is None else self._blocks.layers.get(match.inside)
        parts = (theirs,) if isinstance(theirs, str) else theirs
        return parts and tuple(f"{_fill(self._blocks.diffusers, match.numbers)}.{part}" for part in parts)

    def to_kohya(self, name: str) -> str | None:
        match = _match(self._own, name)
        if match is None:
            return None
        return f"{_fill(self._blocks.own, match.numbers)}.{self._kohya.get(match.inside, match.inside)}"

    def from_diffusers(self, name: str) -> str | None:
        return self._dotted(_match(self._diffusers, name), self._back)

    def from_own(self, name: str) -> str | None:
        return self._dotted(_match(self._own, name), self._own_spellings)

    def _dotted(self, match: _Match | None, spellings: Mapping[str, str]) -> str | None:
        if match is None:
            return None
        inside = spellings.get(flat(match.inside))
        return inside and f"{_fill(self._blocks.own, match.numbers)}.{inside}"


def _pattern(blocks: str) -> re.Pattern[str]:
    """Of a layer's name, dotted or flat: groups are the numbers and what stands behind."""
    text = r"(\d+)".join(re.escape(part).replace(r"\.", "[._]") for part in blocks.split("#"))
    return re.compile(rf"^{text}[._](.+)$")


def _match(pattern: re.Pattern[str], name: str) -> _Match | None:
    found = pattern.match(name)
    return _Match(found.groups()[:-1], found.groups()[-1]) if found else None


def _fill(blocks: str, numbers: tuple[str, ...]) -> str:
    remaining: Iterator[str] = iter(numbers)
    return re.sub("#", lambda _: next(remaining), blocks)
