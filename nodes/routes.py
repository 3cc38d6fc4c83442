"""HTTP for the canvas: the state of runs, and the few things a run can be told.

Read-only apart from POST /lora_kiln/runs/<id>/<command>. An id is looked up among the runs of this process; nothing
that a client sends is ever used as a path. The host's own origin check lies before every route.
"""

from __future__ import annotations

from aiohttp import web

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
