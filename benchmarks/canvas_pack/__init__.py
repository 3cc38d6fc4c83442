"""A node for benchmarks/listeners.py alone: reports steps to the canvas at a steady rate and says what that cost."""

from __future__ import annotations

import asyncio
import contextvars
import json
import sys
import time
from types import ModuleType
from typing import Any

import torch
from comfy_api.latest import ComfyExtension, io


def pack_module(name: str) -> ModuleType:
    """A module of the pack by the end of its name; the host names packages after their path."""
    return next(m for n, m in list(sys.modules.items()) if n.endswith(name) and "lora-kiln" in n)


def report(node_id: str, run_id: str, steps: int, pause: float, sending: bool) -> dict[str, float]:
    """Seconds that the training thread spends in the listeners, and the whole process's seconds of computing."""
    events, monitor = pack_module("trainer.events"), pack_module("host.monitor").RunMonitor(node_id, steps)
    progress = pack_module("host.run")._listener(pack_module("host.progress").NodeProgress(node_id))
    monitor.begin(run_id, torch.device("cpu"))
    spent, computed, began = 0.0, time.process_time(), time.perf_counter()
    for step in range(1, steps + 1):
        event = events.StepEvent(
            step=step,
            total=steps,
            loss=1.0 / step,
            smoothed_loss=1.0 / step,
            learning_rate=1e-4,
            grad_norm=1.0,
            seconds=pause,
            epoch=step / 20,
        )
        if sending:
            before = time.perf_counter()
            progress(event)
            monitor.listen(event)
            spent += time.perf_counter() - before
        time.sleep(max(0.0, began + step * pause - time.perf_counter()))
    computed = time.process_time() - computed
    monitor.end("done", "")
    return {"spent": spent, "computed": computed}


class KilnBenchCanvas(io.ComfyNode):
    """See report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnBenchCanvas",
            category="benchmark",
            inputs=[
                io.String.Input("run_id"),
                io.Int.Input("steps", max=1 << 30),
                io.Float.Input("pause", min=0.0),
                io.Boolean.Input("sending"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    async def execute(cls, run_id: str, steps: int, pause: float, sending: bool) -> io.NodeOutput:
        context, node = contextvars.copy_context(), cls.hidden.unique_id
        work = asyncio.get_running_loop().run_in_executor(
            None, lambda: context.run(report, node, run_id, steps, pause, sending)
        )
        return io.NodeOutput(ui={"text": (json.dumps(await work),)})


class BenchExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [KilnBenchCanvas]


async def comfy_entrypoint() -> Any:
    """Called by the host."""
    return BenchExtension()
