"""The items of a run with the highest and the lowest loss, as its newest checkpoint has them; see item_losses.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..dataset.contact_sheet import Pointed
from ..dataset.encoded import EncodedItem
from ..dataset.places import AS_THEY_ARE, Places
from ..errors import KilnError
from .checkpoint import read_state
from .checkpoint_list import newest_checkpoint
from .item_losses import ItemLosses
from .runfile import LEFT_OUT, RunFile, read_listed_items

SHOWN = 6  # at each end
UNNAMED = "its name was not kept: embed_metadata was off"


@dataclass(frozen=True, kw_only=True)
class RankedItem:
    """One item of a run."""

    number: int  # among those that are trained on, from 1
    name: str  # "" where the run kept none
    source: Path | None  # its picture or clip, where it is known
    times: float  # the loss of the middle item at the same noise levels
    loss: float  # mean of its last draws, at whatever levels they had
    draws: int
    stands_out: bool  # by the rule of the advice

    @property
    def lines(self) -> tuple[str, ...]:
        """For a sheet."""
        return (f"{self.number}. {self.name or UNNAMED}", f"{self.times:.2f} x, {self.draws} draws")


def ranked_items(
    run_folder: Path, places: Places = AS_THEY_ARE, most: int = SHOWN
) -> tuple[list[RankedItem], list[RankedItem]]:
    """The highest and the lowest, each beginning at its end; no item is in both.

    Raises:
        KilnError: the run has no checkpoint, kept no losses of its items (earlier versions did not, and a short run has
            none to compare), or its files are damaged.
    """
    newest = newest_checkpoint(run_folder)
    if newest is None:
        raise KilnError(f"The run {run_folder.name} has no checkpoint yet; wait for its first one, or save.")
    listed = read_listed_items(run_folder / RunFile(model={}).dataset, places)
    items = [item for item in listed.items if item.role != "validation"]
    try:
        losses = ItemLosses.from_dict(read_state(newest).item_losses, len(items))
        order = losses.ranked()
        apart = set(losses.standing_out([item.role for item in items]))
        found = [_ranked(items[i], i, losses, i in apart, LEFT_OUT not in listed.remarks) for i in order]
    except (TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise KilnError(f"The checkpoint {newest} cannot be read ({error}); save another one.") from error
    if not found:
        raise KilnError(
            f"The run {run_folder.name} has kept no losses of its items: it is of an earlier version, or too short for "
            "items to be compared; train longer."
        )
    half = min(most, -(-len(found) // 2))
    return found[:half], found[half:][-most:][::-1]


def pointed(items: list[RankedItem]) -> list[Pointed]:
    """The same for a sheet."""
    return [Pointed(i.source, i.lines, i.stands_out) for i in items]


def _ranked(
    item: EncodedItem, place: int, losses: ItemLosses, stands_out: bool, is_named: bool
) -> RankedItem:
    return RankedItem(
        number=place + 1,
        name=item.name.strip("'\"") if is_named else "",
        source=item.source,
        times=losses.times(place),
        loss=losses.loss[place],
        draws=losses.draws[place],
        stands_out=stands_out,
    )
