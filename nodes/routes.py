"""HTTP for the canvas: the state of runs, the few things a run can be told, and the memory that a run would need.

Read-only apart from POST /lora_kiln/runs/<id>/<command>; past runs are in history_routes.py. An id is looked up among
the runs of this process; nothing that a client sends is ever used as a path. The host's own origin check lies before
every route.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ..trainer.errors import KilnError
from .host.foresight import foresee
from .host.monitor import RunMonitor, all_runs, find_run, route_table

COMMANDS = ("stop", "pause", "resume", "save")


def add_routes() -> None:
    """Called once, when the host loads the pack."""
    routes = route_table()

    @routes.get("/lora_kiln/runs")
    async def runs(request: web.Request) -> web.Response:
        return web.json_response({"runs": [run.state() for run in all_runs()]})

    @routes.get("/lora_kiln/runs/{run}")
    async def run(request: web.Request) -> web.Response:
        found = find_run(request.match_info["run"])
        return (
            web.json_response(found.whole())
            if found
            else _refuse(404, "There is no such run in this session.")
        )

    @routes.post("/lora_kiln/runs/{run}/{command}")
    async def command(request: web.Request) -> web.Response:
        found, name = find_run(request.match_info["run"]), request.match_info["command"]
        if found is None:
            return _refuse(404, "There is no such run in this session.")
        if name not in COMMANDS:
            return _refuse(404, f"A run can be told {', '.join(COMMANDS)}; not {name[:40]!r}.")
        if found.controls is None:
            return _refuse(409, "This run has ended.")
        tell(found, name)
        return web.json_response({"run": found.run_id, "command": name})

    @routes.post("/lora_kiln/estimate")
    async def estimate(request: web.Request) -> web.Response:
        """What the run that is set up on the canvas would need of the device; reads the header of a listed file."""
        try:
            asked = _question(await request.json())
            return web.json_response(await asyncio.to_thread(foresee, **asked))
        except (KilnError, ValueError) as error:
            return _refuse(400, str(error))


def _question(body: Any) -> dict[str, Any]:
    """The arguments of foresee. Raises ValueError, in one sentence."""
    wanted = {
        "loader": str,
        "file": str,
        "weight_dtype": str,
        "config": dict,
        "resolution": int,
        "max_frames": int,
    }
    if not isinstance(body, dict) or set(body) != set(wanted):
        raise ValueError(f"The body is a JSON object with {', '.join(wanted)}.")
    for name, kind in wanted.items():
        if type(body[name]) is not kind:
            raise ValueError(f"{name} is not a {kind.__name__}.")
    for name in ("resolution", "max_frames"):
        if not 1 <= body[name] <= 100_000:
            raise ValueError(f"{name} is {body[name]}; it lies between 1 and 100000.")
    return body


def tell(run: RunMonitor, command: str) -> None:
    """Hand a command to a running run."""
    controls = run.controls
    assert controls is not None, "the run has ended"
    if command == "stop":
        controls.finish()
    elif command == "pause":
        controls.pause()
        run.say("paused")
    elif command == "resume":
        controls.resume()
        run.say("running")
    else:
        controls.request_save()


def _refuse(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
