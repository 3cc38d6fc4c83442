"""HTTP for uploads into a dataset's folder below ComfyUI/input: pictures, clips, captions, masks, or a zip of them.

    POST look     {"folder", "names"}                     what is taken, what clashes, what is refused
    POST file     ?folder=&name=&clash=    the bytes       one file
    POST archive  ?folder=                 the bytes       a zip waits; what is in it, and a token
    POST unpack   {"folder", "token", "clash"}             it is unpacked

A file may be as large as ComfyUI takes uploads (--max-upload-size). Bytes come as application/octet-stream.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
from pathlib import Path
from typing import IO, Any

from aiohttp import web

from ..trainer.dataset.names import check_new_name
from ..trainer.dataset.upload import (
    CLASHES,
    Answer,
    FileExists,
    check_room,
    clear_archives,
    look_into,
    look_over,
    receiving,
    unpack,
)
from .dataset_routes import BASE, MOST_ITEMS
from .guards import Refused, answering, choice, json_body, text_field
from .host import paths
from .host.canvas.dataset_changes import tell_pages
from .host.canvas.monitor import route_table

PIECE = 1 << 18  # bytes
TOKEN = re.compile(r"[0-9a-f]{32}")


def add_upload_routes() -> None:
    """Called once, when the host loads the pack."""
    routes = route_table()
    routes.post(BASE + "/upload/look")(answering(look))
    routes.post(BASE + "/upload/file")(answering(receive))
    routes.post(BASE + "/upload/archive")(answering(archive))
    routes.post(BASE + "/upload/unpack")(answering(unpack_archive))


async def look(request: web.Request) -> web.Response:
    """-> Answer of trainer/dataset/upload.py, "limit": bytes of a file, "exists": whether the folder is there."""
    body = await json_body(request)
    folder = paths.new_dataset_folder(text_field(body, "folder"))
    names = body.get("names")
    if not isinstance(names, list) or len(names) > MOST_ITEMS or not all(isinstance(n, str) for n in names):
        raise Refused(400, f"names is a list of at most {MOST_ITEMS} texts.")
    answer = await asyncio.to_thread(look_over, folder, names)
    return web.json_response(_told(answer, folder) | {"limit": request.client_max_size})


async def receive(request: web.Request) -> web.Response:
    """-> {"name", "written": false when it was skipped}"""
    folder = paths.new_dataset_folder(request.query.get("folder", ""))
    name = check_new_name(request.query.get("name"), "file name")
    clash = choice(request.query.get("clash", "refuse"), "clash", CLASHES)
    _check_size(request)
    check_room(folder, request.content_length or 0)
    try:
        with receiving(folder, name, clash) as target:  # type: ignore[arg-type]
            if target is not None:
                await _take(request, target)
    except FileExists as error:
        raise Refused(409, str(error), exists=name) from error
    tell_pages(paths.dataset_name(folder), [])
    return web.json_response({"name": name, "written": target is not None})


async def archive(request: web.Request) -> web.Response:
    """-> Answer, and "token" for unpack."""
    folder = paths.new_dataset_folder(request.query.get("folder", ""))
    _check_size(request)
    store = paths.upload_store()
    store.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(clear_archives, store)
    check_room(store, request.content_length or 0)
    waiting = store / f"{secrets.token_hex(16)}.zip"
    try:
        with open(waiting, "xb") as target:
            await _take(request, target)
        answer = await asyncio.to_thread(look_into, waiting, folder)
    except BaseException:
        waiting.unlink(missing_ok=True)
        raise
    return web.json_response(_told(answer, folder) | {"token": waiting.stem})


async def unpack_archive(request: web.Request) -> web.Response:
    """-> {"written": how many files}"""
    body = await json_body(request)
    folder = paths.new_dataset_folder(text_field(body, "folder"))
    token = text_field(body, "token", 64)
    clash = choice(body.get("clash", "refuse"), "clash", CLASHES)
    waiting = paths.upload_store() / f"{token}.zip"
    if not TOKEN.fullmatch(token) or not waiting.is_file():
        raise Refused(404, "The archive does not wait here any more; upload it again.")
    try:
        written = await asyncio.to_thread(unpack, waiting, folder, clash)  # type: ignore[arg-type]
    except FileExists as error:
        raise Refused(409, str(error)) from error
    waiting.unlink(missing_ok=True)
    tell_pages(paths.dataset_name(folder), [])
    return web.json_response({"written": written})


def _told(answer: Answer, folder: Path) -> dict[str, Any]:
    return dataclasses.asdict(answer) | {"exists": folder.is_dir()}


def _check_size(request: web.Request) -> None:
    if request.content_type != "application/octet-stream":
        raise Refused(415, "The body is the file's bytes; send Content-Type: application/octet-stream.")
    if (request.content_length or 0) > request.client_max_size:
        raise Refused(413, _too_large(request))


async def _take(request: web.Request, target: IO[bytes]) -> None:
    """The body into a file, no more of it than the host takes."""
    size = 0
    async for piece in request.content.iter_chunked(PIECE):
        size += len(piece)
        if size > request.client_max_size:
            raise Refused(413, _too_large(request))
        await asyncio.to_thread(target.write, piece)
    if request.content_length is not None and size != request.content_length:
        raise Refused(400, "The upload broke off; try again.")


def _too_large(request: web.Request) -> str:
    limit = request.client_max_size >> 20
    return (
        f"The file is larger than the {limit} MB that ComfyUI takes; start it with a larger --max-upload-size, or copy "
        "the file into ComfyUI/input yourself."
    )
