"""Every run ever made, in one SQLite file: what was tried, on what, how it went, what the user thought of it.

Write-ahead logging, and small transactions: a process that is killed at any moment leaves a whole file that lacks at
most the last two seconds of its curve (checkpoints, not this file, are what a run is resumed from). `Recorder` is the
listener that fills it while a run goes on.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset.encoded import EncodedDataset
from ..dataset.places import AS_THEY_ARE, Places
from ..errors import KilnError
from ..events import AdviceEvent, Event, SampleEvent, StepEvent, ValidationEvent

log = logging.getLogger(__name__)

# One script per version of the schema; a file of an older version gets those it lacks, in order, in one transaction.
MIGRATIONS = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, started REAL NOT NULL, updated REAL NOT NULL, status TEXT NOT NULL,
        folder TEXT NOT NULL, config TEXT NOT NULL, dataset TEXT NOT NULL, items INTEGER NOT NULL,
        held_out INTEGER NOT NULL, base_model TEXT NOT NULL, step INTEGER NOT NULL DEFAULT 0,
        seconds REAL NOT NULL DEFAULT 0, advice TEXT NOT NULL DEFAULT '[]', files TEXT NOT NULL DEFAULT '[]',
        message TEXT NOT NULL DEFAULT '');
    CREATE TABLE points (
        run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE, kind TEXT NOT NULL, step INTEGER NOT NULL,
        value REAL, PRIMARY KEY (run, kind, step)) WITHOUT ROWID;
    """,
    """
    ALTER TABLE runs ADD COLUMN rating INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE runs ADD COLUMN notes TEXT NOT NULL DEFAULT '';
    CREATE TABLE samples (
        run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE, step INTEGER NOT NULL, prompt TEXT NOT NULL,
        path TEXT NOT NULL);
    CREATE INDEX samples_by_run ON samples (run, step);
    """,
    """
    ALTER TABLE runs ADD COLUMN name TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN parent TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN node TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN workflow TEXT NOT NULL DEFAULT '';
    """,
)
ORDERS = ("newest", "rating", "validation", "loss")
FLUSH_SECONDS = 2.0
SILENT_SECONDS = 600.0  # a run that says it is running and has not been heard of for so long is not


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run as the history knows it."""

    id: str  # name of its folder
    started: float  # seconds since 1970
    status: str  # running, done, stopped, failed, or lost (its process ended without a word)
    folder: Path
    config: dict[str, Any]
    dataset: str  # fingerprint
    items: int  # trained on
    held_out: int  # for validation
    base_model: str  # fingerprint
    step: int
    seconds: float
    advice: list[str]
    files: list[str]  # as Places.stored writes them
    message: str  # why it failed
    rating: int  # 1-5 by the user, 0 for none
    notes: str
    name: str  # that the user gave it, or empty
    parent: str  # id of the run whose checkpoint it began from, or empty
    node: str  # id of the training node, or empty
    workflow: str  # id of the graph on the canvas that held the node, or empty
    loss: float | None  # mean of the last 50 steps
    best_loss: float | None  # lowest validation loss
    best_step: int | None


class History:
    """The file. Usable from any thread; several processes may have it open."""

    def __init__(self, path: Path, places: Places = AS_THEY_ARE) -> None:
        """Opens or makes the file and brings its schema up to date.

        Args:
            places: by which files are named; whole paths of earlier versions are read, too.

        Raises:
            KilnError: it is damaged, or was written by a newer version.
        """
        self._lock, self._path, self._places = threading.RLock(), path, places
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _connect(path)
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate(path)
        except (OSError, sqlite3.OperationalError) as error:  # the disk, not the file
            raise _unwritable(path, error) from error
        except sqlite3.Error as error:
            raise KilnError(
                f"The history of runs {path} is damaged ({error}); move it away and a new one is made."
            ) from error

    def close(self) -> None:
        self._db.close()

    def _migrate(self, path: Path) -> None:
        """Write only where the file is of an older version: most of those who open it only read."""
        if self._version() == len(MIGRATIONS):
            return
        with self._transaction():
            version = self._version()  # another process may have been faster
            if version > len(MIGRATIONS):
                raise KilnError(
                    f"The history of runs {path} was written by a newer LoRA Kiln (version {version} of the file, "
                    f"this one knows {len(MIGRATIONS)}); update the pack."
                )
            for script in MIGRATIONS[version:]:
                for statement in filter(str.strip, script.split(";")):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _version(self) -> int:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return int(version)

    @contextmanager
    def _transaction(self) -> Any:
        """Raises KilnError where the disk is full or read only; then nothing is changed."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # a full disk has ended it already
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise _unwritable(self._path, error) from error

    def start(
        self,
        run_id: str,
        folder: Path,
        config: dict[str, Any],
        dataset: EncodedDataset,
        base_model: str,
        *,
        place: tuple[str, str] = ("", ""),
        parent: str = "",
        step: int = 0,
        losses: Sequence[float] = (),
    ) -> None:
        """A run begins, or goes on after it was stopped: rating, notes, name and parent stay.

        Args:
            place: ids of the training node and of the graph on the canvas that holds it.
            parent: id of the run whose checkpoint this one begins from; its curves up to there are this run's, too.
            step: of that checkpoint.
            losses: of every step up to the checkpoint that the run goes on from. A process that was killed had not
                written the last of them.
        """
        held_out = sum(i.role == "validation" for i in dataset.items)
        now = time.time()
        values = (
            self._places.stored(folder),
            json.dumps(config),
            dataset.fingerprint,
            len(dataset.items) - held_out,
            held_out,
        )
        with self._transaction() as db:
            db.execute(
                "INSERT INTO runs (id, started, updated, status, folder, config, dataset, items, held_out, base_model, "
                "node, workflow, parent) VALUES (?, ?, ?, 'running', ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO "
                "UPDATE SET updated = excluded.updated, status = 'running', folder = excluded.folder, "
                "config = excluded.config, message = '', "
                "node = excluded.node, workflow = excluded.workflow",
                (run_id, now, now, *values, base_model, *place, parent),
            )
            if parent:
                db.execute(
                    "INSERT OR IGNORE INTO points SELECT ?, kind, step, value FROM points WHERE run = ? AND step <= ?",
                    (run_id, parent, step),
                )
                db.execute("UPDATE runs SET step = ? WHERE id = ?", (step, run_id))
            _add_missing(db, run_id, losses)

    def add_points(self, run_id: str, points: Iterable[tuple[str, int, float]]) -> None:
        """(kind, step, value) of a run's curves; a step measured again replaces what was there."""
        rows = [(run_id, k, s, v if math.isfinite(v) else None) for k, s, v in points]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?)", rows)
            steps = [row[2] for row in rows if row[1] == "loss"]
            db.execute(
                "UPDATE runs SET updated = ?, step = coalesce(?, step) WHERE id = ?",
                (time.time(), steps[-1] if steps else None, run_id),
            )

    def add_sample(self, run_id: str, step: int, prompt: str, path: Path) -> None:
        """A picture that was drawn with the LoRA at that step; drawn again, it replaces what was there."""
        with self._transaction() as db:
            stored = self._places.stored(path)
            db.execute("DELETE FROM samples WHERE run = ? AND path IN (?, ?)", (run_id, stored, str(path)))
            db.execute("INSERT INTO samples VALUES (?, ?, ?, ?)", (run_id, step, prompt, stored))

    def samples(self, run_id: str) -> list[tuple[int, str, Path]]:
        """(step, prompt, path), by step and in the order in which they were drawn."""
        with self._lock:
            found = self._db.execute(
                "SELECT step, prompt, path FROM samples WHERE run = ? ORDER BY step, rowid", (run_id,)
            ).fetchall()
        return [(r["step"], r["prompt"], self._places.found(r["path"])) for r in found]

    def set_advice(self, run_id: str, advice: Sequence[str]) -> None:
        with self._transaction() as db:
            db.execute("UPDATE runs SET advice = ? WHERE id = ?", (json.dumps(list(advice)), run_id))

    def end(
        self, run_id: str, status: str, *, seconds: float = 0.0, files: Sequence[Path] = (), message: str = ""
    ) -> None:
        """A run is over: status "done", "stopped" or "failed"; seconds of this session are added up."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET status = ?, updated = ?, seconds = seconds + ?, files = ?, message = ? WHERE id = ?",
                (
                    status,
                    time.time(),
                    seconds,
                    json.dumps(list(map(self._places.stored, files))),
                    message,
                    run_id,
                ),
            )

    def end_killed(
        self, run_id: str, status: str, losses: Sequence[float], *, seconds: float, files: Sequence[Path]
    ) -> None:
        """A run is over that the history holds as running, because its process was killed before it had written its end
        here; nothing happens where it has.

        Args:
            losses: of every step.
            status, seconds, files: see end.
        """
        record = self.record(run_id)
        if record is None or record.status not in ("running", "lost"):
            return
        with self._transaction() as db:
            _add_missing(db, run_id, losses)
        self.end(run_id, status, seconds=seconds, files=files)

    def rate(
        self, run_id: str, rating: int | None = None, notes: str | None = None, name: str | None = None
    ) -> None:
        """What the user thinks: rating 1-5 (0 takes it back), notes, a name; None leaves each as it is.

        Raises:
            KilnError: there is no such run, or the rating is out of range.
        """
        if rating is not None and not 0 <= rating <= 5:
            raise KilnError(f"rating is {rating}; it must lie between 0 and 5.")
        with self._transaction() as db:
            done = db.execute(
                "UPDATE runs SET rating = coalesce(?, rating), notes = coalesce(?, notes), name = coalesce(?, name) "
                "WHERE id = ?",
                (rating, notes, name, run_id),
            )
            if not done.rowcount:
                raise KilnError(f"The history holds no run {run_id!r}; choose one from the table.")

    def forget(self, run_id: str) -> None:
        """Take a run out, with its curves and the list of its samples. Its files stay."""
        with self._transaction() as db:
            db.execute("DELETE FROM runs WHERE id = ?", (run_id,))

    def curve(self, run_id: str, kind: str = "loss") -> list[tuple[int, float]]:
        """(step, value) in order; nan where a step was skipped."""
        with self._lock:
            found = self._db.execute(
                "SELECT step, value FROM points WHERE run = ? AND kind = ? ORDER BY step", (run_id, kind)
            ).fetchall()
        return [(r["step"], math.nan if r["value"] is None else r["value"]) for r in found]

    def record(self, run_id: str) -> Record | None:
        """The run of that id."""
        return next(iter(self._records_of([run_id])), None)

    def records(self, words: str = "", order: str = "newest", dataset: str | None = None) -> list[Record]:
        """Runs that hold all of the words (in id, name, status, settings, notes or advice), in order.

        Args:
            words: separated by blanks, upper and lower case alike; empty for all.
            order: one of ORDERS: "newest", "rating" (highest first), "validation" or "loss" (lowest first, those
                without last).
            dataset: only runs of the dataset with this fingerprint.
        """
        return self.page(words, order, dataset)[0]

    def page(
        self,
        words: str = "",
        order: str = "newest",
        dataset: str | None = None,
        offset: int = 0,
        limit: int | None = None,
    ) -> tuple[list[Record], int]:
        """Some of `records`, and how many there are. The figures of curves are computed for the runs of the page only,
        or, where they are the order, for those that hold the words."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT {', '.join(_SEARCHED)}, dataset, rating FROM runs {_NEWEST}"
            ).fetchall()
        found = [r for r in rows if (dataset is None or r["dataset"] == dataset) and _holds(r, words)]
        if order == "rating":
            found.sort(key=lambda r: -r["rating"])
        ids = [r["id"] for r in found]
        if order in ("validation", "loss"):
            figures = {r.id: r.best_loss if order == "validation" else r.loss for r in self._records_of(ids)}
            ids.sort(key=lambda run: math.inf if (value := figures.get(run)) is None else value)
        return self._records_of(ids[offset : None if limit is None else offset + limit]), len(ids)

    def _records_of(self, ids: Sequence[str]) -> list[Record]:
        """The runs of these ids, in their order, each with the figures of its curves."""
        found: dict[str, Record] = {}
        for start in range(0, len(ids), _IDS_A_QUERY):
            part = ids[start : start + _IDS_A_QUERY]
            with self._lock:
                rows = self._db.execute(
                    _WITH_FIGURES + f" WHERE id IN ({', '.join('?' * len(part))})", part
                ).fetchall()
            found.update((row["id"], _record(row, self._places)) for row in rows)
        return [found[run] for run in ids if run in found]  # one may be forgotten meanwhile


def _add_missing(db: sqlite3.Connection, run_id: str, losses: Sequence[float]) -> None:
    """What a process that was killed had not written of these steps."""
    done = [(run_id, i, x if math.isfinite(x) else None) for i, x in enumerate(losses, 1)]
    db.executemany("INSERT OR IGNORE INTO points VALUES (?, 'loss', ?, ?)", done)
    db.execute("UPDATE runs SET step = max(step, ?) WHERE id = ?", (len(losses), run_id))


_SEARCHED = ("id", "name", "status", "config", "notes", "advice")
_NEWEST = "ORDER BY started DESC, id DESC"
_IDS_A_QUERY = 500  # SQLite before 3.32 takes 999 values
_WITH_FIGURES = """
    SELECT runs.*,
        (SELECT avg(value) FROM (SELECT value FROM points WHERE run = id AND kind = 'loss' ORDER BY step DESC LIMIT 50))
            AS loss,
        (SELECT min(value) FROM points WHERE run = id AND kind = 'validation' AND step > 0) AS best_loss,
        (SELECT step FROM points WHERE run = id AND kind = 'validation' AND step > 0 AND value IS NOT NULL
            ORDER BY value, step LIMIT 1) AS best_step
    FROM runs"""


def _unwritable(path: Path, error: Exception) -> KilnError:
    return KilnError(
        f"The history of runs {path} cannot be written ({error}); free some disk space, or give ComfyUI's user "
        "permission to write there."
    )


def _connect(path: Path) -> sqlite3.Connection:
    """The file, made when missing; on a disk that cannot be written, for reading.

    Raises:
        sqlite3.Error: it cannot be opened.
    """

    def connect(name: str) -> sqlite3.Connection:
        is_uri = name.startswith("file:")
        db = sqlite3.connect(name, timeout=10.0, check_same_thread=False, isolation_level=None, uri=is_uri)
        db.row_factory = sqlite3.Row
        return db

    db = connect(str(path.absolute()))
    try:
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":  # an empty file is made here
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # makes the files of the log
        return db
    except sqlite3.OperationalError as error:
        db.close()
        if not path.is_file():
            raise
        log.warning("The history of runs %s is opened for reading only: %s", path, error)
        # Where there is no log (or an empty one), nor room for one, the file is read as it lies on the disk
        wal = path.with_name(path.name + "-wal")
        has_log = wal.is_file() and wal.stat().st_size > 0
        name = urllib.parse.quote(
            "/" + path.absolute().as_posix().removeprefix("/")
        )  # of Windows too: /C:/...
        return connect(f"file://{name}?mode=ro{'' if has_log else '&immutable=1'}")


def _record(row: sqlite3.Row, places: Places) -> Record:
    values = {name: row[name] for name in Record.__dataclass_fields__}
    if row["status"] == "running" and time.time() - row["updated"] > SILENT_SECONDS:
        values["status"] = "lost"
    for name in ("config", "advice", "files"):
        values[name] = json.loads(row[name])
    return Record(**{**values, "folder": places.found(row["folder"])})


def _holds(row: sqlite3.Row, words: str) -> bool:
    text = " ".join(str(row[name]) for name in _SEARCHED).lower()
    return all(word in text for word in words.lower().split())


def as_table(records: Sequence[Record]) -> str:
    """Plain text, one run a line, for people."""
    head = (
        "run",
        "status",
        "steps",
        "items",
        "kind",
        "rank",
        "rate",
        "loss",
        "validation",
        "rating",
        "notes",
    )
    lines = [head]
    for r in records:
        adapter, optimizer = r.config.get("adapter", {}), r.config.get("optimizer", {})
        best = "" if r.best_loss is None else f"{r.best_loss:.4f} at {r.best_step}"
        lines.append(
            (
                r.id,
                r.status,
                f"{r.step}/{r.config.get('steps', '?')}",
                str(r.items),
                str(adapter.get("kind", "lora")),
                str(adapter.get("rank", "?")),
                f"{optimizer.get('learning_rate', 0):g}",
                "" if r.loss is None else f"{r.loss:.4f}",
                best,
                "*" * r.rating,
                r.notes or "; ".join(a.split(":")[0] for a in r.advice),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


class Recorder:
    """A listener that writes one run's curves, advice and samples, a few times a minute and at every measurement.

    What cannot be written, because the disk is full, is kept and written later; the user is told once.
    """

    def __init__(
        self,
        history: History,
        run_id: str,
        warn: Callable[[str], None] = log.warning,
        prompts: bool = True,
    ) -> None:
        """
        Args:
            warn: told why something cannot be written.
            prompts: whether those of samples are kept.
        """
        self._history, self._run_id, self._warn, self._prompts = history, run_id, warn, prompts
        self._points: list[tuple[str, int, float]] = []
        self._advice: tuple[str, ...] | None = None
        self._samples: list[SampleEvent] = []
        self._last = time.monotonic()
        self._failed = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepEvent):
            self._points += [
                ("loss", event.step, event.loss),
                ("learning_rate", event.step, event.learning_rate),
                ("grad_norm", event.step, event.grad_norm),
            ]
            if time.monotonic() - self._last >= FLUSH_SECONDS:
                self.flush()
        elif isinstance(event, ValidationEvent):
            self._points.append(("validation", event.step, event.loss))
            self._points += [(f"band {i}", event.step, v) for i, v in enumerate(event.bands)]
            self.flush()
        elif isinstance(event, AdviceEvent):
            self._advice = event.advice
            self.flush()
        elif isinstance(event, SampleEvent):
            self._samples.append(event)
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, as far as the disk takes it."""
        self._last = time.monotonic()
        try:
            if self._points:
                self._history.add_points(self._run_id, self._points)
                self._points.clear()
            while self._samples:
                drawn = self._samples[0]
                prompt = drawn.prompt if self._prompts else ""
                self._history.add_sample(self._run_id, drawn.step, prompt, drawn.path)
                self._samples.pop(0)
            if self._advice is not None:
                self._history.set_advice(self._run_id, self._advice)
                self._advice = None
            self._failed = False
        except KilnError as error:
            if not self._failed:
                self._warn(str(error))
            self._failed = True
