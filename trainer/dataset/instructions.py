"""What a model that writes captions is asked, ready-made; the node shows the chosen one, to be edited.

web/instructions.mjs has them too, for the browser to fill in; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Write = Literal["caption", "tags", "fields"]
WRITES: tuple[Write, ...] = ("caption", "tags", "fields")
OWN = "own"


@dataclass(frozen=True)
class Instruction:
    """One of them."""

    write: Write
    text: str


READY = {
    "subject": Instruction(
        "caption",
        "Describe this picture in one or two plain sentences, as a caption for training an image model on its main "
        "subject. Say what changes from picture to picture: pose, action, expression, clothes, framing, background, "
        "light. Leave out what always belongs to the subject, such as face, hair and build. Answer with the caption "
        "only.",
    ),
    "style": Instruction(
        "caption",
        "Describe what this picture shows in one or two plain sentences, as a caption for training an image model on "
        "its style. Say who and what is seen, doing what, where, and how it is arranged. Leave out everything about "
        "the style itself: medium, technique, brushwork, palette, artist. Answer with the caption only.",
    ),
    "video motion": Instruction(
        "caption",
        "These are frames of one clip, in order. Describe in two or three plain sentences who or what is seen and how "
        "it moves from the first frame to the last, then how the camera moves, or that it stands still. Use the "
        "present tense. Answer with the caption only.",
    ),
    "tags": Instruction(
        "tags",
        "List what is seen in this picture as short lower-case tags with commas between, as image boards use them: "
        "first how many people (1girl, 2boys, no humans), then hair, eyes, clothes, pose, expression, view, objects, "
        "background, light. At most 30 tags. Answer with the tags only.",
    ),
    "fields": Instruction(
        "fields",
        "Look at this picture and say of each name below what is seen, in two to six words, as they would stand in a "
        "caption.",
    ),
}


def asked_for_fields(instruction: str, names: Sequence[str]) -> str:
    """With the form of the answer, which captioning.read_fields reads."""
    lines = "\n".join(f"{name}:" for name in names)
    return f"{instruction}\n\nAnswer with exactly these lines, each completed:\n{lines}"
