"""Ask a running ComfyUI: queue graphs, wait for them, read pictures and events.

The part of its HTTP and websocket interface that the tests, the demo and the benchmarks need. Standard library only,
except `HostClient.events`.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any


class HostError(RuntimeError):
    """The host could not be found, fetched, started or asked; the message says what to do."""


class HostClient:
    """The part of ComfyUI's HTTP interface that tests and scripts need. Standard library only, except `events`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex
        # A proxy from the environment must not come between us and our own machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(self, path: str, payload: Any = None, *, timeout: float = 180.0) -> bytes:
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

    def get_json(self, path: str, *, timeout: float = 180.0) -> Any:
        """The decoded answer to GET `path`."""
        return json.loads(self.request(path, timeout=timeout))

    def post_json(self, path: str, payload: Any, *, timeout: float = 180.0) -> Any:
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
        self, prompt_id: str, timeout: float = 600.0, on_poll: Callable[[], None] | None = None
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

    def wait_for(self, wanted: Callable[[Event], bool], timeout: float = 300.0) -> Event:
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
