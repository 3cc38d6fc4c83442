"""Where mirroring an image would teach something wrong: sides named in captions, and writing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .items import Item

# "right now" and "left behind" are rare beside "on the left"; a warning too many costs a look.
_SIDES = re.compile(r"\b(left|right|leftward|rightward|clockwise)\b|\u5de6|\u53f3", re.IGNORECASE)
_WRITING = re.compile(
    r"\b(text|letters?|lettering|logo|watermark|typography|handwriting|signboard|road sign|caption reads|says)\b"
    r"|\u6587\u5b57|\u6c34\u5370|\u5b57\u6bcd",
    re.IGNORECASE,
)


def flip_warnings(items: Sequence[Item]) -> list[str]:
    """One sentence per kind of harm, naming the first files; empty when mirroring looks safe."""
    sides = [i.path.name for i in items if _SIDES.search(i.caption)]
    writing = [i.path.name for i in items if i.facts.text_like or _WRITING.search(i.caption)]
    warnings = []
    if sides:
        warnings.append(
            f"Flip would make {len(sides)} captions wrong that say left or right: {_names(sides)}."
        )
    if writing:
        warnings.append(f"Flip would mirror writing in {len(writing)} items: {_names(writing)}.")
    return [f"{w} Set horizontal_flip to 0." for w in warnings]


def _names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
