"""Captions, tags and fields written by a model that looks at pictures, item by item, into ordinary sidecar files.

What a user wrote is never replaced unless it is asked for, with the number of items. Each answer is on disk before the
next is begun, so that a stop loses nothing, and a later run goes on: what the same model wrote with the same settings
stays (model_marks.py). All of a run is taken back by few undos on the dataset page (journal.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from ..errors import KilnError, shortened
from ..parsers import lines_of
from ..rng import derive_seed
from .browse import Contents, Listed, Part
from .edit import Change, DatasetEditor, Outdated, Seen
from .encode_progress import duration
from .files import VIDEO_ENDINGS, ending, name_key
from .instructions import Write, asked_for_fields
from .items import Dataset, Item
from .model_marks import CAPTION, SETTINGS_DIGITS, ModelMarks
from .names import shown_name
from .pixels import read_pixels
from .remarks import names_of
from .tables import CAPTION_KEYS, NAME_KEYS
from .template import lead_with
from .video import read_frames

MOST_SIDE = 1024  # pixels of a picture that the model is given
FRAME_SIDE = 512  # of each frame of a clip
UNDONE_TOGETHER = 200  # items of one entry of the journal
MOST_TAGS = 60
MOST_SHOWN = 300  # characters of a caption on the node

Which = Literal["without", "without or by a model", "all"]
WHICH: tuple[Which, ...] = ("without", "without or by a model", "all")

_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s+")
_QUOTES = "\"'`\u201c\u201d"
_COLONS = re.compile("[:\uff1a]")
_COMMAS = re.compile("[,\uff0c\u3001\n]")


@dataclass(frozen=True)
class Answer:
    """What the model wrote."""

    text: str
    cut: bool = False  # it was not at its end when most_tokens were reached


class Captioner(ABC):
    """A model that writes about pictures.

    Attributes:
        fingerprint: another one for a model that writes otherwise.
    """

    fingerprint: str

    @abstractmethod
    def describe(
        self,
        pictures: Sequence[Image.Image],
        instruction: str,
        *,
        most_tokens: int,
        temperature: float,
        seed: int,
    ) -> Answer:
        """
        Args:
            pictures: RGB; several are frames of one clip, of one size and in order.
            instruction: what to write.
            most_tokens: of the answer.
            temperature: of the draws among words; 0 always takes the likeliest.
            seed: of these draws.
        """


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """What to write, and of which items."""

    instruction: str
    write: Write = "caption"
    which: Which = "without"
    replace: int = 0
    """How many items whose text the user wrote may get another one."""
    fields: tuple[str, ...] = ()
    """Names that `write` fields fills in."""
    trigger_word: str = ""
    frames: int = 4
    """Of a clip that the model is shown."""
    most_tokens: int = 256
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises KilnError where nothing could be written."""
        if not self.instruction.strip():
            raise KilnError("The instruction is empty; write what the model shall do, or choose a ready one.")
        if self.write == "fields" and not self.fields:
            raise KilnError(
                "write is fields and none is named; name them in fields, with commas between: lighting, action."
            )
        for name in self.fields:
            if name.lower() in (*CAPTION_KEYS, *NAME_KEYS):
                raise KilnError(f"A field cannot be called {shown_name(name)}; choose another name.")

    @property
    def prompt(self) -> str:
        """The instruction as the model gets it."""
        return asked_for_fields(self.instruction, self.fields) if self.write == "fields" else self.instruction


@dataclass(frozen=True)
class Progress:
    """Before an item, and after all."""

    done: int
    total: int
    name: str = ""  # of the item that is being looked at
    picture: Image.Image | None = None
    last: str = ""  # what was written of the item before
    seconds_left: float | None = None

    def sentence(self) -> str:
        """For the node's text; empty when there is nothing to do."""
        if not self.name:
            return ""
        so_far = f"captioning {self.name}: {self.done} of {self.total} done"
        if self.seconds_left is not None:
            left = duration(self.seconds_left)
            so_far = f"captioning {self.name}: {self.done} of {self.total} done, about {left} left"
        return f"{so_far}\n{shortened(self.last, MOST_SHOWN)}" if self.last else so_far


@dataclass
class Captioned:
    """The result."""

    dataset: Dataset
    written: int = 0
    kept: int = 0  # had a text already
    only_here: int = 0  # images of the graph: no file is written beside them
    empty: list[Path] = field(default_factory=list)  # the model had no answer
    cut: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)  # by somebody else, while the model wrote
    failed: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """What became of the items, for the node's text."""
        lines = [f"{self.written} items captioned now, {self.kept} left as they were"]
        if self.only_here:
            lines.append(
                f"{self.only_here} images come from the graph: their captions are in this dataset, not in files"
            )
        if self.empty:
            lines.append(f"the model wrote nothing usable of {len(self.empty)}: {names_of(self.empty)}")
        if self.cut:
            lines.append(
                f"{len(self.cut)} answers were cut off at max_tokens: {names_of(self.cut)}; raise it, or ask for less"
            )
        if self.changed:
            lines.append(
                f"{len(self.changed)} were changed elsewhere meanwhile and stay as they are: {names_of(self.changed)}"
            )
        return "\n".join(lines + [f"skipped: {reason}" for reason in self.failed])


class CaptionRun:
    """One pass over a dataset."""

    def __init__(
        self,
        dataset: Dataset,
        captioner: Captioner,
        options: CaptionOptions,
        journals: Path,
        marks: ModelMarks,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_written: Callable[[Path, str], None] = lambda root, name: None,
    ) -> None:
        """
        Args:
            dataset: its items are looked at.
            captioner: the model.
            options: what to write.
            journals: where the journals of all folders lie.
            marks: what models wrote.
            on_progress: called before each item and at the end; may raise to stop.
            on_written: called with the dataset's folder and the item's name in it.
        """
        self._dataset, self._captioner, self._options = dataset, captioner, options
        self._journals, self._marks = journals, marks
        self._on_progress, self._on_written = on_progress, on_written
        self._settings = _settings_of(options, captioner.fingerprint)
        self._contents: dict[Path, Contents] = {}
        self._entries: dict[Path, tuple[str, int]] = {}  # root -> entry of the journal, items in it
        self._result = Captioned(dataset)

    def run(self) -> Captioned:
        """Look at every item that is asked for.

        Raises:
            KilnError: the user's own texts would be replaced and this was not allowed, or every item failed.
        """
        items, result = list(self._dataset.items), self._result
        before = [self._state(item) for item in items]
        wanted = [n for n, item in enumerate(items) if self._wants(item, before[n])]
        self._ask([n for n in wanted if self._users_own(items[n], before[n])])
        result.kept = len(items) - len(wanted)
        began, last, written = time.monotonic(), "", set[tuple[Path, str]]()
        for done, n in enumerate(wanted):
            item, state = items[n], before[n]
            shared = (item.path.parent, name_key(item.path.stem))
            if item.root is not None and shared in written:  # photo.png and photo.jpg have one photo.txt
                items[n] = self._as_on_disk(item)
                result.kept += 1
                continue
            try:
                if state is not None and state.error:
                    raise KilnError(state.error)  # what cannot be read is not written over
                pictures = pictures_for_model(item, self._options.frames)
                left = (time.monotonic() - began) / done * (len(wanted) - done) if done else None
                self._on_progress(Progress(done, len(wanted), item.path.name, pictures[0], last, left))
                texts = self._ask_model(item, pictures)
                if texts and self._write(item, state, texts):
                    items[n], last = _with_texts(item, texts), "; ".join(texts.values())
                    written.add(shared)
            except KilnError as error:
                result.failed.append(str(error))
        if result.failed and not result.written:
            raise KilnError(result.failed[0])
        self._on_progress(Progress(len(wanted), len(wanted)))
        result.dataset = dataclasses.replace(self._dataset, items=tuple(items))
        return result

    def _state(self, item: Item) -> Listed | None:
        """What is said of it on disk; None for an image of the graph."""
        if item.root is None:
            return None
        if item.root not in self._contents:
            self._contents[item.root] = Contents(item.root, Part(True), self._marks)
        return self._contents[item.root].item(item.path)

    def _texts(self, item: Item, state: Listed | None) -> dict[str, str]:
        """Those that the options are about, as they are now."""
        caption = item.caption if state is None else state.caption
        fields = dict(item.fields) if state is None else state.fields
        if self._options.write != "fields":
            return {CAPTION: caption}
        return {name: fields.get(name, "") for name in self._options.fields}

    def _wants(self, item: Item, state: Listed | None) -> bool:
        texts = self._texts(item, state)
        if not all(texts.values()):
            return True
        if self._options.which == "without":
            return False
        by_model = state.by_model if state is not None else ()
        if self._options.which != "all" and not set(texts) <= set(by_model):
            return False
        settings = {self._marks.settings(item.path.name, what, text) for what, text in texts.items()}
        return settings != {self._settings}  # else an earlier run has been here

    def _replaces(self, what: str, text: str, state: Listed | None) -> bool:
        """Whether a text that is there may be replaced."""
        by_model = state is not None and what in state.by_model
        return (
            not text
            or self._options.which == "all"
            or (by_model and self._options.which == "without or by a model")
        )

    def _users_own(self, item: Item, state: Listed | None) -> bool:
        """Whether a text of the user would be replaced in a file."""
        if state is None or self._options.which != "all":
            return False
        return any(text and what not in state.by_model for what, text in self._texts(item, state).items())

    def _ask(self, replaced: list[int]) -> None:
        if len(replaced) > self._options.replace:
            first = self._dataset.items[replaced[0]].path
            raise KilnError(
                f"{len(replaced)} items have a text that you wrote (the first is {names_of([first])}); to let the "
                f"model replace them set replace to {len(replaced)}, or choose the items without. Undo on the dataset "
                "page brings them back."
            )

    def _ask_model(self, item: Item, pictures: Sequence[Image.Image]) -> dict[str, str]:
        """What the model says, by CAPTION or a field's name; empty where there is nothing usable."""
        options = self._options
        answer = self._captioner.describe(
            pictures,
            options.prompt,
            most_tokens=options.most_tokens,
            temperature=options.temperature,
            seed=derive_seed(options.seed, "model caption", int(item.facts.sha256[:8] or "0", 16)),
        )
        if answer.cut:
            self._result.cut.append(item.path)
        if options.write == "fields":
            texts = read_fields(answer.text, options.fields)
        else:
            clean = clean_tags if options.write == "tags" else clean_caption
            text = clean(answer.text)
            texts = {CAPTION: lead_with(options.trigger_word.strip(), text)} if text else {}
        if not texts:
            self._result.empty.append(item.path)
        return texts

    def _write(self, item: Item, state: Listed | None, texts: dict[str, str]) -> bool:
        """Put texts beside the item, less those that stay; `texts` then holds what was written."""
        now = self._texts(item, state)
        for what in [w for w in texts if not self._replaces(w, now[w], state)]:
            del texts[what]
        if not texts:
            self._result.empty.append(item.path)
            return False
        if state is None or item.root is None:
            self._result.only_here += 1
            self._result.written += 1
            return True
        self._marks.add(item.path.name, texts, self._settings)
        fields = {name: text for name, text in texts.items() if name != CAPTION}
        change = Change(Seen(state.name, state.version), texts.get(CAPTION), fields)
        root, (entry, count) = item.root, self._entries.get(item.root, ("", 0))
        try:
            made = DatasetEditor(root, Part(True), self._journals).write([change], "by model", onto=entry)
        except Outdated:
            self._result.changed.append(item.path)
            return False
        if made is not None:
            count = count + 1 if entry else 1
            self._entries[root] = ("", 0) if count >= UNDONE_TOGETHER else (made.id, count)
            self._on_written(root, state.name)
        self._result.written += 1
        return True

    def _as_on_disk(self, item: Item) -> Item:
        contents = Contents(item.root, Part(True)) if item.root is not None else None
        said = contents.item(item.path) if contents is not None else None
        if said is None:
            return item
        return dataclasses.replace(item, caption=said.caption, fields=tuple(said.fields.items()))


def pictures_for_model(item: Item, frames: int) -> list[Image.Image]:
    """A still, or so many frames of a clip, evenly spread; RGB, small enough to be looked at.

    Raises:
        KilnError: the file cannot be read.
    """
    clip = item.facts.frames > 1
    if clip or ending(item.path.name) in VIDEO_ENDINGS:
        count = min(frames, item.facts.frames)
        numbers = [(2 * n + 1) * item.facts.frames // (2 * count) for n in range(count)]
        return read_frames(item.path, numbers, lambda frame: _small(frame, FRAME_SIDE if clip else MOST_SIDE))
    return [_small(read_pixels(item.path, at_least=MOST_SIDE), MOST_SIDE)]


def clean_caption(text: str) -> str:
    """One line without what models put around their answers: thoughts, quotation marks, bullets, "Caption:"."""
    text = _BULLET.sub("", " ".join(_THOUGHT.sub("", text).split()))
    text = re.sub(r"^(?:\*\*)?(?:caption|answer)(?:\*\*)?\s*:\s*(?:\*\*)?", "", text, flags=re.IGNORECASE)
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1]
    return text.replace("\0", "").strip()


def clean_tags(text: str) -> str:
    """Tags with commas between, each once."""
    lines = [_BULLET.sub("", line) for line in lines_of(_THOUGHT.sub("", text))]
    parts = (clean_caption(part).strip(f" .;{_QUOTES}") for part in _COMMAS.split("\n".join(lines)))
    return ", ".join(list(dict.fromkeys(part for part in parts if part))[:MOST_TAGS])


def read_fields(text: str, names: Sequence[str]) -> dict[str, str]:
    """The "name: value" lines of an answer, for the names that are known, whatever their case."""
    wanted = {name_key(name): name for name in names}
    found: dict[str, str] = {}
    for line in lines_of(_THOUGHT.sub("", text)):
        name, *rest = _COLONS.split(_BULLET.sub("", line.strip()), maxsplit=1)
        known = wanted.get(name_key(name.strip(f" *{_QUOTES}")))
        value = clean_caption(rest[0].strip(" *")) if rest else ""
        if known and value:
            found.setdefault(known, value)
    return found


def _settings_of(options: CaptionOptions, fingerprint: str) -> str:
    apart = ("which", "replace")  # they choose items, not words
    told = {k: v for k, v in dataclasses.asdict(options).items() if k not in apart}
    return hashlib.sha256(repr((fingerprint, sorted(told.items()))).encode()).hexdigest()[:SETTINGS_DIGITS]


def _with_texts(item: Item, texts: dict[str, str]) -> Item:
    fields = {**dict(item.fields), **{name: text for name, text in texts.items() if name != CAPTION}}
    return dataclasses.replace(item, caption=texts.get(CAPTION, item.caption), fields=tuple(fields.items()))


def _small(picture: Image.Image, side: int) -> Image.Image:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture
