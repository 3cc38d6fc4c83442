"""Names that a browser sends: which file of a dataset folder is meant, and whether a new one may be called so.

A name is relative to the folder, with forward slashes. It never leads out of the folder, neither by its parts nor
through a link, and a new one can be written on every system that a dataset is carried to.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from ..errors import KilnError, shortened

MOST_NAME = 200  # characters of one part; file systems hold 255 bytes, and our temporary names are longer
MOST_DEPTH = 12  # parts of a path

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_DEVICES = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
)  # what Windows takes for a device


def inside(root: Path, name: object) -> Path:
    """The path of an existing or wanted file of a folder.

    Args:
        root: the dataset's folder.
        name: what the browser sent.

    Raises:
        KilnError: the name leads out of the folder.
    """
    if not isinstance(name, str) or not name or len(name) > 1000 or "\0" in name:
        raise KilnError("A file name is missing or is no text; send a name relative to the dataset's folder.")
    parts = PurePosixPath(name).parts
    try:
        path = root.joinpath(*parts)
        real, base = path.resolve(), root.resolve()
        leaves = ".." in parts or name.startswith("/") or base not in real.parents
    except (OSError, ValueError, RuntimeError):  # too long, not encodable, links in a circle
        leaves = True
    if leaves:
        raise KilnError(
            f"The name {shown_name(name)} leads out of the dataset's folder; choose a file that lies in it."
        )
    return path


def check_new_name(name: object, what: str = "name") -> str:
    """The name, tidied, when a file or folder may be made with it.

    Args:
        name: relative, with forward slashes.
        what: how the message calls it.

    Raises:
        KilnError: it is not relative, or holds what some system does not allow.
    """
    if not isinstance(name, str) or not name.strip():
        raise KilnError(f"The {what} is empty; write one, for example my_photos.")
    parts = name.strip().split("/")
    if len(parts) > MOST_DEPTH:
        raise KilnError(
            f"The {what} {shown_name(name)} has more than {MOST_DEPTH} levels; use fewer folders."
        )
    for part in parts:
        reason = _refused(part)
        if reason:
            raise KilnError(f"The {what} {shown_name(name)} cannot be used: {reason}; choose another.")
    return "/".join(parts)


def shown_name(name: object) -> str:
    """A name for messages: short, printable, in quotes."""
    return repr(shortened(str(name), 80).encode("utf-8", "replace").decode())


def _refused(part: str) -> str:
    if not part or part in (".", ".."):
        return "it is no plain relative path"
    if part.startswith((".", "~")):
        return "a part begins with a dot, which hides it, or a tilde, which shells take for a home folder"
    if len(part) > MOST_NAME or len(part.encode("utf-8", "surrogatepass")) > MOST_NAME + 20:
        return f"a part is longer than {MOST_NAME} letters"
    if _FORBIDDEN.search(part) or not part.isprintable():
        return 'it holds a sign that file systems refuse (< > : " | ? * \\ or one that cannot be printed)'
    if part != part.strip() or part.endswith("."):
        return "a part begins or ends with a space, or ends with a dot"
    if _DEVICES.fullmatch(part):
        return "Windows keeps that name for a device"
    return ""
