"""Training on a CPU keeps freed memory, and gives it back when the run is over."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import threading, torch
from trainer.memory.cpu_tuning import retained_heap, prepare_thread

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096 >> 20

def work():
    held = [torch.ones(1 << 20) for _ in range(64)]  # 256 MB, in pieces that glibc takes from the heap

torch.ones(1 << 22).sum()  # this thread has workers
prepare_thread()
before, inside = resident(), []
def run():
    with retained_heap():
        work()
        inside.append(resident())
thread = threading.Thread(target=run)
thread.start(); thread.join()
assert torch.ones(1 << 22).sum() == 1 << 22  # and gets them back
print(inside[0] - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_is_kept_inside_and_given_back_after() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    inside, after = map(int, done.stdout.split())
    assert inside > 200, "MB that were freed stay with the process"
    assert after < 60, "and go back to the system when the run is over"
