"""Start a real ComfyUI: for the tests, the demo and the benchmarks.

    python -m scripts.host setup                      environment and host, and where they lie
    python -m scripts.host serve [--workspace demo]   a server in the foreground, until Ctrl-C
    python -m scripts.host path [host | python]       the paths alone

Where the host comes from and what it may touch: host_files.py. How to talk to it: host_client.py.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from scripts.host_client import HostClient, HostError
from scripts.host_files import REPO, ensure_venv, get_host, host_version, say, workspace

STDIN_IS_LEASH = "KILN_STDIN_IS_LEASH"  # see launch_host.py


class RunningHost:
    """A ComfyUI server process of ours. Use it in a `with` block, or call `stop`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, base: Path, log_path: Path) -> None:
        self.process = process
        self.port = port
        self.base = base
        """The workspace: input/, output/, models/, user/ as the server sees them."""
        self.log_path = log_path
        self.url = f"http://127.0.0.1:{port}"
        atexit.register(self.stop)

    def __enter__(self) -> RunningHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def read_log(self) -> str:
        """All the server has printed so far."""
        return self.log_path.read_text("utf-8", errors="replace")

    def stop(self) -> None:
        """End the server: ask (SIGINT, as Ctrl-C does), then insist. Only this one process is touched."""
        atexit.unregister(self.stop)
        steps: list[tuple[Callable[[], None], float]] = [
            (self.process.terminate, 5.0),
            (self.process.kill, 5.0),
        ]
        if os.name != "nt":
            steps.insert(0, (lambda: self.process.send_signal(signal.SIGINT), 10.0))
        for step, patience in steps:
            if self.process.poll() is not None:
                break
            step()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        if self.process.stdin is not None:
            self.process.stdin.close()

    def wait_until_up(self, timeout: float = 400.0) -> None:
        """Poll /system_stats until it answers.

        Raises:
            HostError: the process ended, or `timeout` seconds passed; the message holds the end of the log.
        """
        client = HostClient(self.url)
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError, HostError):
                client.get_json("/system_stats", timeout=5.0)
                return
            if self.process.poll() is not None:
                what = f"ended with exit status {self.process.returncode} while starting"
            elif time.monotonic() > deadline:
                what = f"did not answer within {timeout:g} s"
            else:
                time.sleep(0.2)
                continue
            tail = "\n".join(self.read_log().splitlines()[-40:])
            raise HostError(f"ComfyUI {what}. The end of {self.log_path}:\n{tail}")


def start_host(
    base: Path,
    *,
    extra_args: Sequence[str] = (),
    port: int | None = None,
    host: Path | None = None,
    python: Path | None = None,
    cpu: bool | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 400.0,
) -> RunningHost:
    """Start ComfyUI on a workspace and wait until it answers.

    Args:
        base: the folder that `workspace` returned.
        extra_args: more arguments for the host's main.py; they come last and so win.
        port: None lets the system choose a free one.
        host, python: the ComfyUI folder and the Python to run it; None finds (or makes) them.
        cpu: run on the CPU; None does so when torch sees no accelerator.
        env: environment variables to add.
        timeout: seconds to wait for the first answer.
    """
    host = host or get_host()
    python = python or ensure_venv(host)
    port = port or free_port()
    if cpu is None:
        cpu = not has_accelerator(python)
    command = [str(python), str(REPO / "scripts" / "launch_host.py"), *(["--cpu"] if cpu else [])]
    command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    # Without the API nodes, which need accounts elsewhere and slow the start. A database in memory, because the
    # default file lies in the host's own folder, and 0.33 locks it against a second server.
    command += [
        "--disable-auto-launch",
        "--disable-api-nodes",
        "--database-url",
        "sqlite:///:memory:",
        *extra_args,
    ]
    log_path = base / "comfyui.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=host,
            env={**os.environ, "PYTHONUNBUFFERED": "1", STDIN_IS_LEASH: "1", **(env or {})},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    running = RunningHost(process, port, base, log_path)
    try:
        running.wait_until_up(timeout)
    except BaseException:
        running.stop()
        raise
    return running


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_accelerator(python: Path) -> bool:
    """Whether that Python's torch can use a GPU (CUDA, ROCm, XPU, MPS, ...)."""
    question = "import sys, torch; sys.exit(0 if torch.accelerator.is_available() else 1)"
    return subprocess.run([str(python), "-c", question], capture_output=True).returncode == 0


def setup() -> tuple[Path, Path]:
    """Environment and host, ready to use: (python, host)."""
    python = ensure_venv()
    return python, get_host()


def serve(base: Path, port: int | None, extra_args: Sequence[str]) -> int:
    """Run a server in the foreground, its log on stdout, until Ctrl-C, SIGTERM or its own end."""
    signal.signal(signal.SIGTERM, stop_by_signal)
    with start_host(base, port=port, extra_args=extra_args) as running, running.log_path.open("rb") as log:
        say(f"ComfyUI is at {running.url} (workspace {base}; Ctrl-C ends it)")
        try:
            while True:
                ended = running.process.poll() is not None
                sys.stdout.write(log.read().decode(errors="replace"))
                sys.stdout.flush()
                if ended:
                    return int(running.process.returncode)
                time.sleep(0.3)
        except KeyboardInterrupt:
            return 0


def stop_by_signal(number: int, frame: FrameType | None) -> None:
    """Let `with` blocks close on SIGTERM."""
    raise KeyboardInterrupt


def main() -> int:
    """The commands of the module docstring."""
    parser = argparse.ArgumentParser(description="Get, start and serve a real ComfyUI.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make the environment, fetch the host, print where they lie")
    serving = commands.add_parser("serve", help="run a server until Ctrl-C; more arguments go to the host")
    serving.add_argument("--workspace", default="demo", help="folder name below .work/ (default: demo)")
    serving.add_argument("--port", type=int, help="default: a free one")
    paths = commands.add_parser("path", help="print the host's folder and the environment's Python")
    paths.add_argument("which", nargs="?", choices=("host", "python"))
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "serve":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        python, host = setup()
        if arguments.command == "serve":
            return serve(workspace(arguments.workspace), arguments.port, rest)
    except HostError as error:
        say(f"host.py: {error}")
        return 1
    if arguments.command == "path" and arguments.which:
        print(host if arguments.which == "host" else python)
    else:
        print(f"host:   {host} (ComfyUI {host_version(host)})\npython: {python}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
