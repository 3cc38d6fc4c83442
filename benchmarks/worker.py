"""Running a benchmark's worker: a program of this folder, in a process of its own in the host's folder."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.host_files import ensure_venv, get_host


def run_worker(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The last line that it prints, with the options before it; ends this program with its log where it fails."""
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(
            _command(name, options), cwd=get_host(), stdout=subprocess.PIPE, stderr=log, text=True
        )
        if done.returncode:
            log.seek(0)
            raise SystemExit(f"{options} failed:\n{log.read()[-3000:]}")
    return {**options, **json.loads(done.stdout.splitlines()[-1])}


def worker_results(name: str, options: Any) -> Iterator[dict[str, Any]]:
    """Every line that it prints, as it comes; ends this program where it fails."""
    with subprocess.Popen(
        _command(name, options), cwd=get_host(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as work:
        assert work.stdout is not None
        yield from map(json.loads, work.stdout)
    if work.returncode:
        raise SystemExit("The worker failed; run it by hand to see why.")


def _command(name: str, options: Any) -> list[str]:
    return [str(ensure_venv(get_host())), str(Path(__file__).with_name(name)), json.dumps(options)]
