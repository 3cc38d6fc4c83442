"""What was tried and what worked, as a table, and any run of it handed on."""

from __future__ import annotations

import time
from typing import Any

import torch
from comfy_api.latest import io

from ..trainer.dataset.encoded import EncodedDataset
from ..trainer.errors import KilnError
from ..trainer.runs.history import History, Record, as_table
from ..trainer.runs.run import load_run
from . import types
from .host import paths
from .host.canvas.blocked import blocked
from .listing import listed

ORDERS = ("newest", "rating", "validation")


class KilnRunHistory(io.ComfyNode):
    """Every run ever made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnRunHistory",
            display_name="Run History (LoRA Kiln)",
            **listed("KilnRunHistory"),
            description="Lists the runs that were ever made, with settings, losses, advice, rating and notes, and "
            "hands one of them on.",
            inputs=[
                io.String.Input(
                    "filter",
                    default="",
                    tooltip="Words that a run must hold in its name, state, settings, notes or advice, such as: done "
                    "style. Empty lists all.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default=ORDERS[0],
                    tooltip="newest first, highest rating first, or lowest validation loss first.",
                ),
                io.Int.Input(
                    "place",
                    default=1,
                    min=1,
                    max=10_000,
                    tooltip="Which run of the table goes to the outputs run and lora, 1 is the first.",
                ),
                io.Int.Input(
                    "rating",
                    default=0,
                    min=0,
                    max=5,
                    tooltip="Writes this rating, 1-5, to the chosen run; 0 leaves its rating as it is.",
                ),
                io.String.Input(
                    "notes",
                    default="",
                    tooltip="Writes these notes to the chosen run; empty leaves its notes as they are.",
                ),
                types.Encoded.Input(
                    "encoded", optional=True, tooltip="Only runs of this dataset; all without it."
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="One run a line."),
                types.Run.Output(display_name="run", tooltip="The chosen run, for Loss Plot."),
                types.LoraModel.Output(display_name="lora", tooltip="The chosen run's LoRA."),
                io.Image.Output(
                    display_name="items",
                    tooltip="Which items of the chosen run stay at the highest and at the lowest loss; an orange "
                    "frame: it stands out.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        return time.time()  # a run may have ended since

    @classmethod
    def execute(
        cls,
        filter: str,
        order: str,
        place: int,
        rating: int,
        notes: str,
        encoded: EncodedDataset | None = None,
    ) -> io.NodeOutput:
        history = History(paths.history_file(), paths.places())
        try:
            dataset = None if encoded is None else encoded.fingerprint
            records = history.records(filter, order, dataset)
            chosen = _choose(records, place)
            if rating or notes:
                history.rate(chosen.id, rating or None, notes or None)
                records = history.records(filter, order, dataset)
            table = as_table(records)
        finally:
            history.close()
        items, shown = _items(chosen), {"text": (table,)}
        if not chosen.files:  # nothing to hand on; the table is shown all the same
            nothing = blocked(f"The run {chosen.id} has left no LoRA yet; resume it on the training node.")
            return io.NodeOutput(table, nothing, nothing, items, ui=shown)
        run = load_run(chosen.folder)
        return io.NodeOutput(table, run, run.lora, items, ui=shown)


def _items(record: Record) -> Any:
    """The sheet; for a run that knows nothing of its items, nothing, and why."""
    from ..trainer.dataset.contact_sheet import pointed_sheet
    from ..trainer.runs.hard_items import pointed, ranked_items

    try:
        high, low = ranked_items(record.folder, paths.places())
    except KilnError as error:
        return blocked(str(error))
    rows = [("highest loss at the same noise levels", pointed(high)), ("lowest", pointed(low))]
    return torch.from_numpy(pointed_sheet(rows))[None]


def _choose(records: list[Record], place: int) -> Record:
    if place > len(records):
        raise KilnError(
            f"place is {place} and {len(records)} runs are listed; choose a smaller place or another filter."
        )
    return records[place - 1]
