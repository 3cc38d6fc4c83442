"""The node that lets a model of the host write captions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..trainer.dataset.captioning import WHICH, CaptionOptions, CaptionRun, Progress, Which
from ..trainer.dataset.instructions import OWN, READY, WRITES, Write
from ..trainer.dataset.items import Dataset
from ..trainer.errors import KilnError
from ..trainer.parsers import split_list
from . import types
from .host import paths
from .host.canvas.dataset_changes import tell_pages
from .host.canvas.progress import NodeProgress
from .host.encoding.captioner import HostCaptioner
from .inputs import seed_input
from .listing import listed

BETWEEN_TELLS = 2.0  # seconds: open pages read the folder again each time


class KilnCaptionDataset(io.ComfyNode):
    """A model writes captions beside the items."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnCaptionDataset",
            display_name="Caption Dataset (LoRA Kiln)",
            **listed("KilnCaptionDataset"),
            description="Lets a model that looks at pictures write captions, tags or fields beside the items that have "
            "none.",
            inputs=[
                types.Dataset.Input(
                    "dataset", tooltip="From Load Dataset; captions are written into its folder."
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="A text encoder that writes about pictures, as ComfyUI's Generate Text takes it: Qwen3-VL, "
                    "Qwen 3.5, Gemma 3 or Gemma 4. ComfyUI 0.33 or newer.",
                ),
                io.Combo.Input(
                    "ready",
                    options=[*READY, OWN],
                    default="subject",
                    tooltip="A ready instruction: choosing one fills the two inputs below. What these show is what the "
                    "model is asked.",
                ),
                io.Combo.Input(
                    "write",
                    options=list(WRITES),
                    default=WRITES[0],
                    tooltip="caption: one line of text. tags: cleaned, each once, with commas between. fields: values "
                    "for Caption Template, into photo.json.",
                ),
                io.String.Input(
                    "instruction",
                    default=READY["subject"].text,
                    multiline=True,
                    tooltip="What the model is asked of each item.",
                ),
                io.String.Input(
                    "trigger_word",
                    default="",
                    tooltip="Put in front of captions and tags that do not contain it. Not used for fields.",
                ),
                io.Combo.Input(
                    "which",
                    options=list(WHICH),
                    default=WHICH[0],
                    tooltip="Items without a caption; also those whose caption a model wrote and nobody has edited; or "
                    "all. What this model wrote with these settings stays.",
                ),
                *_rare_inputs(),
            ],
            outputs=[
                types.Dataset.Output(display_name="dataset", tooltip="The same items with the new captions."),
                io.String.Output(
                    display_name="captions", is_output_list=True, tooltip="The captions, one per item."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        clip: Any,
        ready: str,
        write: Write,
        instruction: str,
        trigger_word: str,
        which: Which,
        replace: int = 0,
        fields: str = "",
        frames: int = 4,
        max_tokens: int = 256,
        temperature: float = 0.7,
        seed: int = 0,
    ) -> io.NodeOutput:
        options = CaptionOptions(
            instruction=instruction,
            write=write,
            which=which,
            replace=replace,
            fields=tuple(dict.fromkeys(split_list(fields))),
            trigger_word=trigger_word,
            frames=frames,
            most_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        _check_folders(dataset)
        progress, told = NodeProgress(cls.hidden.unique_id), _Tell()

        def step(state: Progress) -> None:
            progress.step(state.done, state.total, state.sentence(), state.picture)

        run = CaptionRun(
            dataset,
            HostCaptioner(clip),
            options,
            paths.edit_journals(),
            paths.model_marks(),
            step,
            told.wrote,
        )
        try:
            found = run.run()
        finally:
            told.all()
        progress.say(found.describe())
        captions = [item.caption for item in found.dataset.items]
        return io.NodeOutput(found.dataset, captions, ui=ui.PreviewText(found.describe()))


def _rare_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "replace",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            tooltip="How many items whose text you wrote yourself the model may replace when all are chosen. With 0 "
            "the node stops and says how many there are.",
        ),
        io.String.Input(
            "fields",
            default="",
            optional=True,
            tooltip="For write fields: their names with commas between, such as lighting, action. Only those that an "
            "item lacks are written.",
        ),
        io.Int.Input(
            "frames",
            default=4,
            min=1,
            max=32,
            optional=True,
            tooltip="How many frames of a clip the model is shown, evenly spread, 1-32.",
        ),
        io.Int.Input(
            "max_tokens",
            default=256,
            min=16,
            max=4096,
            optional=True,
            tooltip="Longest answer in tokens, 16-4096; a word is one or two. Answers that are cut off are named.",
        ),
        io.Float.Input(
            "temperature",
            default=0.7,
            min=0.0,
            max=2.0,
            step=0.05,
            optional=True,
            tooltip="How freely words are drawn, 0-2; 0 always takes the likeliest one.",
        ),
        seed_input("Start of the draws among words; another one gives other captions."),
    ]


def _check_folders(dataset: Dataset) -> None:
    """Raise KilnError when captions cannot be written beside the items."""
    for root in {item.root for item in dataset.items if item.root is not None}:
        if not paths.may_change(root):
            raise KilnError(
                f"The folder {paths.shown(root)} lies outside ComfyUI/input, where no captions are written; move it "
                "there."
            )


class _Tell:
    """Tells open pages what was written, now and then."""

    def __init__(self) -> None:
        self._waiting: dict[Path, list[str]] = {}
        self._last = 0.0

    def wrote(self, root: Path, name: str) -> None:
        self._waiting.setdefault(root, []).append(name)
        if time.monotonic() - self._last > BETWEEN_TELLS:
            self.all()

    def all(self) -> None:
        waiting, self._waiting, self._last = self._waiting, {}, time.monotonic()
        for root, names in waiting.items():
            tell_pages(paths.dataset_name(root), names)
