"""The thread that copies blocks goes on while the interpreter ends: a run that is told to stop finishes its step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import threading, time
from trainer.memory.ring import _CopyThread

def step():
    time.sleep(0.5)  # the main thread has ended meanwhile
    thread = _CopyThread()
    thread.submit(lambda: print("copied")).result()
    failing = thread.submit(lambda: 1 / 0)
    try:
        failing.result()
    except ZeroDivisionError:
        print("raised where it is needed")
    thread.close()

threading.Thread(target=step).start()
"""


def test_copies_while_the_interpreter_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split("\n")[:2] == ["copied", "raised where it is needed"], done.stderr
