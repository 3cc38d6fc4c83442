"""Scripts of this folder that look inside a model, each in a process of its own; see inprocess.py."""

from __future__ import annotations

import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.host_files import REPO, get_host

TINY_WAN = str(REPO / "tests" / "tiny_wan" / "models" / "tiny_wan.safetensors")


def run_in_host(script: str, timeout: float = 1200, arguments: Sequence[str] = (TINY_WAN,)) -> dict[str, Any]:
    """What a script of this folder prints; about the tiny Wan unless it is told otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        job = {
            "script": str(Path(__file__).parent / script),
            "arguments": list(arguments),
            "output": str(output),
            "errors": str(errors),
        }
        status = ask(job, timeout)
        assert status == 0, f"{script} ended with {status}: {errors.read_text('utf-8')[-3000:]}"
        found: dict[str, Any] = json.loads(output.read_text("utf-8").splitlines()[-1])
    return found


@functools.cache
def fork_server() -> subprocess.Popen[str]:
    """It ends with this process: its stdin closes."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
        cwd=get_host(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def ask(job: dict[str, Any], timeout: float) -> int:
    """The exit status of a script. One that takes too long is ended together with the server."""
    server = fork_server()
    assert server.stdin is not None and server.stdout is not None
    print(json.dumps(job), file=server.stdin, flush=True)
    answer = server.stdout.readline() if select.select([server.stdout], [], [], timeout)[0] else ""
    if not answer:
        os.killpg(server.pid, 9)
        fork_server.cache_clear()
        raise AssertionError(f"{job['script']} gave no answer in {timeout:.0f} s, or its server has ended")
    return int(answer)
