"""HTTP for the canvas: the state of runs, the few things a run can be told, and the memory that a run would need.

Read-only apart from POST /lora_kiln/runs/<id>/<command>; past runs are in history_routes.py. An id is looked up among
the runs; nothing that a client sends is ever used as a path: a sample is asked for by a run's id and two numbers, all
checked. What every route asks of a request is in guards.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ..trainer.runs.samples import thumbnail
from .guards import Refused, answering, json_body, run_id
from .host.canvas.estimate import estimate_before_loading
from .host.canvas.monitor import RunMonitor, all_runs, find_run, route_table, run_from_history
from .host.paths import sample_file

COMMANDS = ("finish", "stop", "pause", "resume", "save", "sample")


def add_routes() -> None:
    """Called once, when the host loads the pack."""
    routes = route_table()
    base = "/lora_kiln/runs"
    routes.get(base)(answering(runs))
    routes.get(base + "/{run}")(answering(run))
    routes.get(base + r"/{run}/samples/{step:\d{1,8}}-{place:\d{1,3}}.{kind:png|jpg|webp}")(answering(sample))
    routes.post(base + "/{run}/{command}")(answering(command))
    routes.post("/lora_kiln/estimate")(answering(estimate))


def add_last_route() -> None:
    """Called after all other routes are there: what none of them answers would be looked for among the host's files,
    which answers 500 where the name is too long for one."""
    route_table().get("/lora_kiln/{rest:.*}")(answering(nothing))


async def nothing(request: web.Request) -> web.Response:
    """Of every address of ours that is none."""
    raise Refused(
        404, "There is no such address; reload the page, which may be of another version of LoRA Kiln."
    )


async def runs(request: web.Request) -> web.Response:
    """{"runs": [RunState]} of this server process."""
    return web.json_response({"runs": [run.state() for run in all_runs()]})


async def run(request: web.Request) -> web.Response:
    """One run, of this server process or an earlier one, with its whole curve."""
    wanted = run_id(request)
    found = find_run(wanted) or await asyncio.to_thread(run_from_history, wanted)
    if found is None:
        raise Refused(404, "There is no such run.")
    return web.json_response(found.whole())


async def sample(request: web.Request) -> web.StreamResponse:
    """A picture that was drawn during a run: jpg is a small one."""
    asked = request.match_info
    still = sample_file(asked["run"], int(asked["step"]), int(asked["place"]))
    if still and asked["kind"] == "jpg":
        return web.Response(body=await asyncio.to_thread(thumbnail, still), content_type="image/jpeg")
    found = still and still.with_suffix(f".{asked['kind']}")
    if found is None or not found.is_file():
        raise Refused(404, "There is no such sample.")
    return web.FileResponse(found, headers={"Cache-Control": "no-cache"})  # drawn anew after a roll-back


async def command(request: web.Request) -> web.Response:
    """Tell a run something; the body is an empty object."""
    await json_body(request)
    found, name = find_run(run_id(request)), request.match_info["command"]
    if found is None:
        raise Refused(404, "There is no such run in this session.")
    if name not in COMMANDS:
        raise Refused(404, f"A run can be told {', '.join(COMMANDS)}; not {name[:40]!r}.")
    if found.controls is None:
        raise Refused(409, "This run has ended.")
    if name == "sample" and not found.draws:
        raise Refused(
            409, "This run draws no samples; connect Sample Settings to the training node's settings."
        )
    tell(found, name)
    return web.json_response({"run": found.run_id, "command": name})


async def estimate(request: web.Request) -> web.Response:
    """What the run that is set up on the canvas would need of the device; reads the header of a listed file."""
    asked = _question(await json_body(request))
    try:
        return web.json_response(await asyncio.to_thread(estimate_before_loading, **asked))
    except ValueError as error:  # KilnError is one
        raise Refused(400, str(error)) from error


DATASET = {"folder": str, "recursive": bool, "validation_folder": str, "control_folders": str}
MOST_DATASETS = 64


def _is_text_encoder(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"loader", "files"} or type(value["loader"]) is not str:
        return False
    files = value["files"]
    return isinstance(files, list) and len(files) <= 4 and all(type(file) is str for file in files)


def _question(body: dict[str, Any]) -> dict[str, Any]:
    """The arguments of estimate_before_loading. Raises Refused."""
    wanted = {
        "loader": str,
        "file": str,
        "weight_dtype": str,
        "config": dict,
        "resolution": int,
        "max_frames": int,
    }
    if not set(wanted) <= set(body) <= {*wanted, "datasets", "fps", "max_upscale", "text_encoder"}:
        raise Refused(400, f"The body is a JSON object with {', '.join(wanted)}.")
    for name, kind in wanted.items():
        if type(body[name]) is not kind:
            raise Refused(400, f"{name} is not a {kind.__name__}.")
    for name in ("resolution", "max_frames"):
        if not 1 <= body[name] <= 100_000:
            raise Refused(400, f"{name} is {body[name]}; it lies between 1 and 100000.")
    if "text_encoder" in body and not _is_text_encoder(body["text_encoder"]):
        raise Refused(400, "text_encoder is not an object with a loader and up to 4 files.")
    for name, least in (("fps", 0), ("max_upscale", 1)):
        if type(body.get(name, 1)) not in (int, float) or not least <= body.get(name, 1) <= 1000:
            raise Refused(400, f"{name} is {body[name]!r}; it lies between {least} and 1000.")
    sets = body.get("datasets", [])
    if not isinstance(sets, list) or len(sets) > MOST_DATASETS or not all(map(_is_dataset, sets)):
        raise Refused(
            400, f"datasets is a list of at most {MOST_DATASETS} objects with {', '.join(DATASET)}."
        )
    return body


def _is_dataset(value: Any) -> bool:
    """A page that was loaded before an update does not send control_folders."""
    if not isinstance(value, dict):
        return False
    return {"control_folders": str, **{name: type(v) for name, v in value.items()}} == DATASET


def tell(run: RunMonitor, command: str) -> None:
    """Hand a command to a running run."""
    controls = run.controls
    assert controls is not None, "the run has ended"
    if command == "finish":
        controls.finish()
    elif command == "stop":
        controls.stop()
    elif command == "pause":
        controls.pause()
        run.say("paused")
    elif command == "resume":
        controls.resume()
        run.say("running")
    elif command == "sample":
        controls.request_sample()
    else:
        controls.request_save()
