"""What a run's listeners cost at 20 steps a second: history, TensorBoard, the canvas, all together.

    python -m benchmarks.listeners [--steps 2000] [--canvas 400]

History and TensorBoard are fed a run's events at once, but as if 50 ms lay between two steps (the history flushes
every 40 events). The canvas is a live server with a websocket that reads what it is sent; a node there reports steps
at 20 a second, in real time, with and without sending. Told are shares of the steps' time: of the training thread in
the listeners, and for the canvas also what the whole server process computes more (turning messages into text and
writing them to the socket, on its own thread).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import scripts.cpu_torchvision  # noqa: F401 - before torch's tensorboard
from scripts.host import start_host
from scripts.host_client import HostClient
from scripts.host_files import link, workspace
from trainer.config import TrainConfig
from trainer.dataset.encoded import EncodedDataset
from trainer.events import Event, StepEvent, ValidationEvent
from trainer.report.tensorboard import TensorBoardListener, missing_sentence
from trainer.runs.history import FLUSH_SECONDS, History, Recorder

STEP_SECONDS = 0.05


def events(steps: int) -> list[Event]:
    """A step each, a measurement every 100."""
    found: list[Event] = []
    for step in range(1, steps + 1):
        loss = 1.0 / step
        found.append(
            StepEvent(
                step=step,
                total=steps,
                loss=loss,
                smoothed_loss=loss,
                learning_rate=1e-4,
                grad_norm=1.0,
                seconds=STEP_SECONDS,
                epoch=step / 20,
            )
        )
        if step % 100 == 0:
            found.append(ValidationEvent(step=step, loss=loss, bands=(loss,) * 4, best_step=step))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--canvas", type=int, default=400, help="steps reported to a live server; 0: none")
    arguments = parser.parse_args()
    told = events(arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "history.db")
        history.start("run", Path(folder), TrainConfig().to_dict(), EncodedDataset(()), "model")
        recorder = Recorder(history, "run")
        every = round(FLUSH_SECONDS / STEP_SECONDS)

        def record(event: Event) -> None:
            recorder(event)
            if event.step % every == 0:  # type: ignore[union-attr]
                recorder.flush()

        listeners: dict[str, Callable[[Event], None]] = {"history": record}
        if missing_sentence() is None:
            listeners["tensorboard"] = TensorBoardListener(Path(folder) / "board")
        total = 0.0  # per step
        for name, listener in listeners.items():
            began = time.perf_counter()
            for event in told:
                listener(event)
            spent = time.perf_counter() - began
            total += spent / arguments.steps
            report(name, spent, arguments.steps)
        history.close()
    if arguments.canvas:
        idle, sending = canvas(arguments.canvas)
        total += sending["spent"] / arguments.canvas
        report("canvas", sending["spent"], arguments.canvas)
        report("its server", sending["computed"] - idle["computed"], arguments.canvas)
    report("together", total, 1)


def canvas(steps: int) -> list[dict[str, float]]:
    """What canvas_pack's node says, without and with sending."""
    base = workspace("benchmarks", fresh=True)
    link(Path(__file__).parent / "canvas_pack", base / "custom_nodes" / "canvas_pack")
    found = []
    with start_host(base, cpu=True) as host:
        client = HostClient(host.url)
        with client.events() as stream:
            for sending in (False, True):
                inputs = {
                    "run_id": f"run {sending}",
                    "steps": steps,
                    "pause": STEP_SECONDS,
                    "sending": sending,
                }
                graph = {"node": {"class_type": "KilnBenchCanvas", "inputs": inputs}}
                entry = client.wait(client.queue_prompt(graph), timeout=60 + 2 * steps * STEP_SECONDS)
                found.append(json.loads(entry["outputs"]["node"]["text"][0]))
            points = [e for e in stream.of_type("lora_kiln.run") if e.data["run"] == "run True"]
            assert sum(len(e.data["points"]) for e in points) == steps, "every point arrived"
    return found


def report(name: str, seconds: float, steps: int) -> None:
    share = seconds / (steps * STEP_SECONDS)
    print(f"{name:12} {1e6 * seconds / steps:7.0f} us a step  {share:6.2%} of the time at 20 steps a second")


if __name__ == "__main__":
    main()
