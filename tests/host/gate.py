"""Which of the host's functions wait for a run that holds the device; prints JSON. See test_lent_weights.py."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.model_management as management
import torch
from lora_kiln.nodes.host.memory.gate import DeviceGate  # type: ignore[import-not-found]
from lora_kiln.trainer.runs.job import Job  # type: ignore[import-not-found]

if not hasattr(management, "reset_cast_buffers"):  # a stand-in of host 0.33's on 0.3.75
    management.reset_cast_buffers = lambda: None

begun, end = threading.Event(), threading.Event()


def work(controls: Any) -> None:
    controls.acquire_device()
    begun.set()
    end.wait()
    controls.release_device()


CALLS = {
    "free_memory": lambda: management.free_memory(1, torch.device("cpu")),
    "load_models_gpu": lambda: management.load_models_gpu([]),
    "reset_cast_buffers": lambda: management.reset_cast_buffers(),
    "soft_empty_cache": lambda: management.soft_empty_cache(),
}
job = Job(work)
waits = {}
threads = []
with DeviceGate.shared_with(job):
    job.start()
    begun.wait()
    for name, call in CALLS.items():
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(0.5)
        waits[name] = thread.is_alive()
        threads.append(thread)
    end.set()
    job.wait()
    for thread in threads:
        thread.join(10)
print(json.dumps({"waits": waits, "ended": not any(t.is_alive() for t in threads)}))
