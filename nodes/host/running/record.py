"""What is written of a run beside its checkpoints: run.toml, the history, TensorBoard files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ....trainer.config import TrainConfig
from ....trainer.dataset.encoded import EncodedDataset
from ....trainer.errors import KilnError
from ....trainer.events import Listener
from ....trainer.lora_files.metadata import without_local_paths
from ....trainer.report.tensorboard import TensorBoardListener
from ....trainer.runs import runfile
from ....trainer.runs.artifacts import delete_artifacts
from ....trainer.runs.history import History, Recorder
from ....trainer.runs.run import LORA, Run
from .. import paths

log = logging.getLogger(__name__)


class RunRecord:
    """The record of one run.

    Attributes:
        listeners: of the run's events.
    """

    def __init__(
        self,
        run_id: str,
        history: History,
        board: TensorBoardListener | None,
        warn: Callable[[str], None],
        prompts: bool,
    ) -> None:
        self._run_id, self._history, self._warn = run_id, history, warn
        self._recorder = Recorder(history, run_id, warn, prompts)
        self.listeners: list[Listener] = [self._recorder, *([board] if board else [])]

    def end(
        self, status: str, *, advice: Sequence[str] | None = None, message: str = "", **details: Any
    ) -> None:
        """Write what is left, and how the run ended; where the disk is full, say so.

        Args:
            status: "done", "stopped" or "failed".
            advice: what the curves say.
            message: why it failed.
            details: see trainer.runs.history.History.end.
        """
        self._recorder.flush()
        try:
            if advice is not None:
                self._history.set_advice(self._run_id, without_local_paths(list(advice)))
            self._history.end(self._run_id, status, message=without_local_paths(message), **details)
        except KilnError as error:
            self._warn(str(error))


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
    losses: Sequence[float] = (),
    text_source: dict[str, str] | None = None,
    warn: Callable[[str], None],
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
        losses: of the steps that are done.
        text_source: how the text encoder was loaded, where it is trained too.
        warn: told what cannot be written while the run goes on.

    Raises:
        KilnError: run.toml or the history cannot be written; nothing is left of a run that is new.
    """
    model = {**_at_home(source or {"loader": ""}), "fingerprint": base_model.partition("+")[0]}
    prompts = config.embed_metadata
    with ExitStack() as at_end:
        try:
            runfile.write_run_file(
                folder,
                runfile.RunFile(model=model, text_encoder=text_source or {}, config=config),
                encoded,
                paths.places(),
            )
            history = History(paths.history_file(), paths.places())
            at_end.callback(history.close)
            history.start(
                folder.name,
                folder,
                config.to_record(),
                encoded,
                base_model,
                place=place,
                parent=parent,
                step=step,
                losses=losses,
            )
        except BaseException:
            if parent or not step:  # a folder of its own, of which nothing is to be left
                with suppress(KilnError):
                    delete_artifacts(folder)
            raise
        board = _open_board(folder.name, warn, prompts) if tensorboard else None
        if board is not None:
            at_end.callback(board.close)
        record = RunRecord(folder.name, history, board, warn, prompts)
        try:
            yield record
        except BaseException as error:
            record.end("failed", message=str(error))
            raise


def end_record(run: Run) -> None:
    """Write into the history that a run has ended whose process was killed before it had; another's entry stays as it
    is."""
    try:
        history = History(paths.history_file(), paths.places())
        try:
            history.end_killed(
                run.run_id,
                "stopped" if run.stopped else "done",
                run.losses,
                seconds=run.seconds,
                files=[run.folder / LORA],
            )
        finally:
            history.close()
    except KilnError as error:
        log.warning("%s", error)


def _at_home(source: dict[str, str]) -> dict[str, str]:
    """How the model was loaded, as run.toml holds it. A file that a run file named by its path, which no loader finds,
    is told below the host's folders; outside of them by its name alone."""
    file = source.get("file", "")
    if source.get("loader") or not file:
        return source
    inside = paths.places().is_inside(Path(file))
    return {**source, "file": paths.places().stored(file) if inside else Path(file).name}


def _open_board(run_id: str, warn: Callable[[str], None], prompts: bool) -> TensorBoardListener | None:
    try:
        return TensorBoardListener(paths.tensorboard_folder(run_id), warn=warn, prompts=prompts)
    except OSError as error:
        warn(
            f"No TensorBoard files are written ({error}); training goes on. Free some disk space for the next run."
        )
        return None
