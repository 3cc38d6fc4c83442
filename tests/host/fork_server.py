"""One process that has imported the host and this pack, and forks for each script; run by in_host.py.

These imports cost more than most of the scripts. A fork begins where they end: a script finds the modules as a process
of its own would, and what it changes in them ends with it.

Reads a JSON line per script from stdin ({"script", "arguments", "output", "errors"}: three paths and a list) and
answers its exit status in a line of its own. One script at a time.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import inprocess

inprocess.start()

import comfy.samplers
import comfy.sd  # noqa: F401
import peft  # noqa: F401
import torch


def run(script: str, arguments: list[str]) -> int:
    """Its exit status."""
    try:
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(script: str, arguments: list[str], output: str, errors: str) -> int:
    """The exit status of a script in a process of its own; 128 and the signal's number if it was killed."""
    process = os.fork()
    if not process:
        for stream, path in ((1, output), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = run(script, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if code >= 0 else 128 - code


def main() -> None:
    torch.set_num_threads(1)  # the threads of a pool do not live on in a fork
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for line in sys.stdin:
        print(fork(**json.loads(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
