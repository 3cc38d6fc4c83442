"""HTTP for the runs tab: every run of the history, its curve, samples, items and graph; rating and deleting it.

An id is looked up in the history; nothing that a client sends is ever used as a path. The work is done on a thread, so
that the server answers others meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from .guards import Refused, answering, json_body, number, run_id
from .host.canvas import past_runs
from .host.canvas.monitor import route_table

MAX_PAGE = 200
MAX_NOTES, MAX_NAME = 2000, 100  # characters


def add_history_routes() -> None:
    """Called once, when the host loads the pack."""
    routes = route_table()
    base = "/lora_kiln/history"
    routes.get(base)(answering(listing))
    routes.get(base + "/{run}/curve")(answering(curve))
    routes.get(base + "/{run}/graph")(answering(graph))
    routes.get(base + "/{run}/items")(answering(items))
    routes.get(base + "/{run}/leavings")(answering(find_artifacts))
    routes.get(base + "/{run}/sample/{place}")(answering(sample))
    routes.post(base + "/{run}/rate")(answering(rate))
    routes.post(base + "/{run}/delete")(answering(delete))


async def listing(request: web.Request) -> web.Response:
    """?words=&order=&offset=&limit= -> {"runs": [RunRecord], "total": n}; RunRecord in web/api.mjs."""
    query = request.query
    order = query.get("order", past_runs.ORDERS[0])
    if order not in past_runs.ORDERS:
        raise Refused(400, f"order is {order[:40]!r}; it is one of {', '.join(past_runs.ORDERS)}.")
    offset, limit = number(query.get("offset", "0"), "offset"), number(query.get("limit", "50"), "limit")
    if not 1 <= limit <= MAX_PAGE:
        raise Refused(400, f"limit is {limit}; it lies between 1 and {MAX_PAGE}.")
    words = query.get("words", "")[:200]
    runs, total = await asyncio.to_thread(past_runs.page, words, order, offset, limit)
    return web.json_response({"runs": runs, "total": total})


async def curve(request: web.Request) -> web.Response:
    """{"points": [[step, loss, smoothed, rate]], "validation": [[step, loss]]}, thinned out."""
    return web.json_response(await _about(request, past_runs.curve))


async def graph(request: web.Request) -> web.Response:
    """{"workflow": ..., "prompt": ...} as far as the run's LoRA carries them."""
    found = await _about(request, past_runs.graph)
    if not found:
        raise Refused(404, "The LoRA of this run carries no graph.")
    return web.json_response(found)


async def items(request: web.Request) -> web.Response:
    """{"high": [HardItem], "low": [HardItem]}, each end first; HardItem in web/api.mjs."""
    return web.json_response(await _about(request, past_runs.items))


async def find_artifacts(request: web.Request) -> web.Response:
    """What deleting the run would remove and keep."""
    return web.json_response(await _about(request, past_runs.what_goes))


async def sample(request: web.Request) -> web.Response:
    """A small JPEG of the run's n-th sample."""
    place = number(request.match_info["place"], "the number of a sample")
    picture = await _about(request, past_runs.thumbnail, place)
    if picture is None:
        raise Refused(404, f"This run has no sample {place}.")
    return web.Response(body=picture, content_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})


async def rate(request: web.Request) -> web.Response:
    """Body with at least one of {"rating": 0-5, "notes": text, "name": text}."""
    body = await json_body(request)
    rating, notes, name = body.get("rating"), body.get("notes"), body.get("name")
    if rating is None and notes is None and name is None:
        raise Refused(400, "Send rating, notes or both, or a name.")
    if rating is not None and (type(rating) is not int or not 0 <= rating <= 5):
        raise Refused(400, "rating is a whole number from 0 to 5.")
    if notes is not None and (not isinstance(notes, str) or len(notes) > MAX_NOTES):
        raise Refused(400, f"notes is a text of at most {MAX_NOTES} characters.")
    if name is not None and (not isinstance(name, str) or len(name) > MAX_NAME):
        raise Refused(400, f"name is a text of at most {MAX_NAME} characters.")
    if not all(_is_text(text) for text in (notes, name)):
        raise Refused(400, "notes and name are texts; half of a character is in one.")
    return web.json_response(await _about(request, past_runs.rate, rating, notes, name))


async def delete(request: web.Request) -> web.Response:
    """Removes the run's own files and its entry; the answer says what went."""
    await json_body(request)
    return web.json_response(await _about(request, past_runs.delete))


def _is_text(text: str | None) -> bool:
    """Whether it can be written down: JSON lets halves of a character through."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        return False
    return True


async def _about(request: web.Request, ask: Callable[..., Any], *rest: Any) -> Any:
    try:
        return await asyncio.to_thread(ask, run_id(request), *rest)
    except past_runs.UnknownRun as error:
        raise Refused(404, "The history holds no such run; reload the list.") from error
