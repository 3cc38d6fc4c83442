"""HTTP for painting the mask of an item in the host's mask editor.

    POST sheet  {"folder", "name", "recursive", "also"}           what is painted on lies in ComfyUI/temp now
    POST mask   ?folder=&recursive=&also=&name=&version=  a PNG   what was painted becomes the item's mask

The editor opens files of the host's own folders only, and reads and writes the mask as transparency.
"""

from __future__ import annotations

import asyncio
import secrets

from aiohttp import web

from ..trainer.dataset.browse import Contents
from ..trainer.dataset.edit import Seen
from ..trainer.dataset.mask_painting import mask_from_painting, save_painting
from .dataset_routes import BASE, changing, folder_of, media_of, part_of
from .guards import Refused, answering, json_body
from .host import paths
from .host.canvas.monitor import route_table


def add_mask_routes() -> None:
    """Called once, when the host loads the pack."""
    routes = route_table()
    routes.post(BASE + "/mask/sheet")(answering(sheet))
    routes.post(BASE + "/mask")(answering(write_mask))


async def sheet(request: web.Request) -> web.Response:
    """-> {"filename", "subfolder", "type"}: by these the host's own routes show it."""
    body = await json_body(request)
    folder = folder_of(body.get("folder"))
    part = part_of(body, folder)
    media = media_of(body)
    target = paths.mask_sheets() / f"{secrets.token_hex(16)}.png"

    def draw() -> None:
        save_painting(media, Contents(folder, part).mask(media), target)

    await asyncio.to_thread(draw)
    return web.json_response({"filename": target.name, "subfolder": target.parent.name, "type": "temp"})


async def write_mask(request: web.Request) -> web.Response:
    """-> as changing of dataset_routes.py."""
    if request.content_type != "application/octet-stream":
        raise Refused(415, "The body is the picture's bytes; send Content-Type: application/octet-stream.")
    query = dict(request.query)
    seen = Seen(query.get("name", ""), query.get("version", ""))
    try:
        data = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise Refused(413, "The painted mask is larger than ComfyUI takes; scale it down.") from error
    mask = await asyncio.to_thread(mask_from_painting, data)
    return await changing(query, [seen.name], lambda editor: editor.write_mask(seen, mask))
