"""What is written of a run beside its checkpoints: run.toml, the history, TensorBoard files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ....trainer.config import TrainConfig
from ....trainer.dataset.encoded import EncodedDataset
from ....trainer.events import Listener
from ....trainer.report.tensorboard import TensorBoardListener
from ....trainer.runs import runfile
from ....trainer.runs.history import History, Recorder
from .. import paths


class RunRecord:
    """The record of one run.

    Attributes:
        listeners: of the run's events.
    """

    def __init__(self, run_id: str, history: History, board: TensorBoardListener | None) -> None:
        self._run_id, self._history = run_id, history
        self._recorder = Recorder(history, run_id)
        self.listeners: list[Listener] = [self._recorder, *([board] if board else [])]

    def end(self, status: str, *, advice: Sequence[str] | None = None, **details: Any) -> None:
        """Write what is left, and how the run ended.

        Args:
            status: "done", "stopped" or "failed".
            advice: what the curves say.
            details: see trainer.runs.history.History.end.
        """
        self._recorder.flush()
        if advice is not None:
            self._history.set_advice(self._run_id, list(advice))
        self._history.end(self._run_id, status, **details)


@contextmanager
def run_record(
    folder: Path,
    config: TrainConfig,
    encoded: EncodedDataset,
    base_model: str,
    source: dict[str, str],
    *,
    tensorboard: bool,
    place: tuple[str, str] = ("", ""),
    parent: str = "",
    step: int = 0,
) -> Iterator[RunRecord]:
    """Begin the record of a run; an exception inside is recorded as its failure.

    Args:
        folder: the run's.
        config: with every auto written out.
        base_model: the model's fingerprint.
        source: how the model was loaded; see models.source.
        tensorboard: whether TensorBoard files are written too.
        place: ids of the training node and of its graph on the canvas.
        parent, step: the run and the step that a new run goes on from.

    Raises:
        KilnError: run.toml cannot be written.
    """
    model = {**(source or {"loader": ""}), "fingerprint": base_model}
    runfile.write_run_file(folder, runfile.RunFile(model=model, config=config), encoded)
    with ExitStack() as at_end:
        history = History(paths.history_file())
        at_end.callback(history.close)
        history.start(
            folder.name, folder, config.to_dict(), encoded, base_model, place=place, parent=parent, step=step
        )
        board = TensorBoardListener(paths.tensorboard_folder(folder.name)) if tensorboard else None
        if board is not None:
            at_end.callback(board.close)
        record = RunRecord(folder.name, history, board)
        try:
            yield record
        except BaseException as error:
            record.end("failed", message=str(error))
            raise
