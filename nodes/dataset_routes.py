"""HTTP for the dataset page and for the pictures on Load Dataset: what is in a folder, and changes to it.

A folder is below ComfyUI/input, or opened by the machine's owner and then read only; a file lies in it, whatever a
client sends. The work is done on threads, so that the server answers others meanwhile.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

from ..trainer.dataset.browse import Contents, Part, dataset_folders
from ..trainer.dataset.buckets import BucketOptions
from ..trainer.dataset.edit import Change, DatasetEditor, Outdated, Seen
from ..trainer.dataset.files import ENDINGS, ending, find_files
from ..trainer.dataset.journal import Entry
from ..trainer.dataset.loading import read_thumbnail
from ..trainer.dataset.masks import Masks
from ..trainer.dataset.names import inside
from ..trainer.dataset.pixels import open_still, read_mask
from ..trainer.errors import KilnError
from .dataset_scans import figures, told
from .guards import Refused, answering, choice, json_body, number, text_field
from .host import paths
from .host.canvas.dataset_changes import tell_pages
from .host.canvas.monitor import route_table

BASE = "/lora_kiln/dataset"
FIRST = 24  # pictures on the node
SIDES = (96, 512)  # pixels; least and most of a thumbnail
MOST_CONTROLS = 1000  # characters of the names of control folders
MOST_ITEMS = 50_000  # of one change
WRITING = ("caption", "add", "remove", "replace", "fields")
KEPT = {"Cache-Control": "private, max-age=86400"}  # the address holds the file's time
SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}


def add_dataset_routes() -> None:
    """Called once, when the host loads the pack."""
    routes = route_table()
    routes.get(BASE + "/folders")(answering(folders))
    routes.get(BASE + "/glance")(answering(glance))
    routes.get(BASE + "/items")(answering(items))
    routes.get(BASE + "/figures")(answering(figures_of_items))
    routes.get(BASE + "/left_out")(answering(left_out))
    routes.get(BASE + "/thumbnail")(answering(thumbnail))
    routes.get(BASE + "/overlay")(answering(overlay))
    routes.get(BASE + "/file")(answering(file))
    routes.post(BASE + "/write")(answering(write))
    routes.post(BASE + "/set_aside")(answering(set_aside))
    routes.post(BASE + "/bring_back")(answering(bring_back))
    routes.post(BASE + "/delete")(answering(delete))
    routes.post(BASE + "/undo")(answering(undo))


async def folders(request: web.Request) -> web.Response:
    """{"folders": [[name, pictures and clips in it]]} below ComfyUI/input."""
    found = await asyncio.to_thread(dataset_folders, paths.input_folder())
    return web.json_response({"folders": found})


async def glance(request: web.Request) -> web.Response:
    """?folder=&recursive=&also=&controls= -> what the node shows of a folder: figures and the first items;
    {"missing": sentence} where there is none, which is no error on a node that has just been made."""
    try:
        folder = folder_of(request.query.get("folder"))
    except Refused as refused:
        return web.json_response({"missing": str(refused)})
    part = part_of(request.query, folder)

    def look() -> dict[str, Any]:
        contents = Contents(folder, part, paths.model_marks())
        every = contents.items()
        read = [item for item in every if not item.aside]
        return {
            "count": len(read),
            "clips": sum(item.clip for item in read),
            "without": sum(not item.caption for item in read),
            "by_model": sum("caption" in item.by_model for item in read),
            "aside": len(every) - len(read),
            "first": [{"name": i.name, "stamp": i.stamp, "clip": i.clip} for i in read[:FIRST]],
        }

    return web.json_response(await asyncio.to_thread(look))


async def items(request: web.Request) -> web.Response:
    """?folder=&recursive=0|1&also=&controls=&most= -> {"folder", "writable", "items": [Item], "undo": Undo|null}, as in
    web/dataset_api.mjs. `also` is a sub-folder that is read in any case, `controls` are folders of control pictures, as
    on the node; with `most`, only the first items come."""
    folder = folder_of(request.query.get("folder"))
    part = part_of(request.query, folder)
    most = number(request.query.get("most", str(MOST_ITEMS)), "most", 1, MOST_ITEMS)

    def look() -> dict[str, Any]:
        writable = paths.may_change(folder)
        undo = _undoable(_editor(folder, part).newest()) if writable else None
        found = [dataclasses.asdict(item) for item in Contents(folder, part, paths.model_marks()).items(most)]
        return {"folder": paths.dataset_name(folder), "writable": writable, "items": found, "undo": undo}

    return web.json_response(await asyncio.to_thread(look))


async def figures_of_items(request: web.Request) -> web.Response:
    """?folder=&recursive=&also=&controls=&masks=&resolution=&max_frames=&fps= -> see dataset_scans.figures."""
    folder, query = folder_of(request.query.get("folder")), request.query
    options = BucketOptions(
        resolution=number(query.get("resolution", "512"), "resolution", 16, 8192),
        max_frames=number(query.get("max_frames", "33"), "max_frames", 1, 1000),
        fps=number(query.get("fps", "16"), "fps", 0, 240),
    )
    part = part_of(query, folder, strict=True)
    return web.json_response(await asyncio.to_thread(figures, folder, part, options))


async def left_out(request: web.Request) -> web.Response:
    """?folder=&recursive=&also=&controls=&masks= -> see dataset_scans.told."""
    folder = folder_of(request.query.get("folder"))
    part = part_of(request.query, folder, strict=True)
    return web.json_response(await asyncio.to_thread(told, folder, part))


async def thumbnail(request: web.Request) -> web.Response:
    """?folder=&name=&side=&stamp= -> a small JPEG; of a clip, its first frame."""
    path = media_of(request.query)
    side = number(request.query.get("side", "256"), "side", *SIDES)

    def draw() -> bytes:
        return _jpeg(read_thumbnail(path, 1, side))

    return web.Response(
        body=await asyncio.to_thread(draw), content_type="image/jpeg", headers={**KEPT, **SAFE}
    )


async def overlay(request: web.Request) -> web.Response:
    """?folder=&name=&stamp= -> a PNG that is red where the loss does not count, to lie over the picture."""
    path = media_of(request.query)

    def draw() -> bytes:
        mask_file = Masks(find_files(folder_of(request.query.get("folder")), True)).of(path)
        if mask_file is not None:
            mask = read_mask(mask_file)
        else:
            picture = open_still(path)[0]
            if picture.mode != "RGBA":
                raise Refused(404, "This item has no mask.")
            mask = picture.getchannel("A")
        mask.thumbnail((SIDES[1], SIDES[1]))
        drawn = Image.new("RGBA", mask.size, (213, 94, 0, 0))
        drawn.putalpha(mask.point(lambda value: (255 - value) * 170 // 255))
        out = io.BytesIO()
        drawn.save(out, "PNG")
        return out.getvalue()

    return web.Response(
        body=await asyncio.to_thread(draw), content_type="image/png", headers={**KEPT, **SAFE}
    )


async def file(request: web.Request) -> web.StreamResponse:
    """?folder=&name=&stamp= -> the picture or clip itself."""
    return web.FileResponse(media_of(request.query), headers={**KEPT, **SAFE})


async def write(request: web.Request) -> web.Response:
    """{"folder", "recursive", "also", "controls", "what", "changes": [{"name", "version", "caption"?, "fields"?}]} ->
    {"changed", "items": [Item], "undo"}."""
    body = await json_body(request)
    what = choice(body.get("what"), "what", WRITING)
    changes = [_change(each) for each in _list(body, "changes")]
    return await changing(body, [c.seen.name for c in changes], lambda editor: editor.write(changes, what))


async def set_aside(request: web.Request) -> web.Response:
    """{"folder", "items": [{"name", "version"}]} -> as write; the items are in set_aside/ now."""
    body = await json_body(request)
    seen = [_seen(each) for each in _list(body, "items")]
    return await changing(body, [], lambda editor: editor.set_aside(seen))


async def bring_back(request: web.Request) -> web.Response:
    """The same out of set_aside/."""
    body = await json_body(request)
    seen = [_seen(each) for each in _list(body, "items")]
    return await changing(body, [], lambda editor: editor.bring_back(seen))


async def delete(request: web.Request) -> web.Response:
    """The same, for good; "sure" is how many items the user was asked about. -> {"files": how many went}"""
    body = await json_body(request)
    seen = [_seen(each) for each in _list(body, "items")]
    if body.get("sure") != len(seen):
        raise Refused(400, "sure is not the number of items; ask the user first.")
    return await changing(body, [], lambda editor: editor.delete(seen))


async def undo(request: web.Request) -> web.Response:
    """{"folder", "id"}: take the newest change back. -> as write"""
    body = await json_body(request)
    entry = text_field(body, "id", 40)
    return await changing(body, [], lambda editor: editor.undo(entry))


async def changing(
    body: dict[str, Any], names: list[str], act: Callable[[DatasetEditor], object]
) -> web.Response:
    """Make a change; {"changed": whether there was any, "items": those of `names` as they are now, "undo": Undo}."""
    folder = folder_of(text_field(body, "folder"))
    if not paths.may_change(folder):
        raise Refused(
            403, "Datasets outside ComfyUI/input are only shown here; edit their files, or move them there."
        )
    part = part_of(body, folder)
    editor = _editor(folder, part)

    def change() -> dict[str, Any]:
        try:
            done = act(editor)
        except Outdated as error:
            raise Refused(
                409, str(error), outdated=error.names, items=_items_now(folder, part, error.names)
            ) from error
        return {
            "changed": done is not None,
            "files": done if isinstance(done, int) else 0,
            "items": _items_now(folder, part, names),
            "undo": _undoable(editor.newest()),
        }

    answer = await asyncio.to_thread(change)
    if answer["changed"]:
        tell_pages(paths.dataset_name(folder), names)
    return web.json_response(answer)


def _items_now(folder: Path, part: Part, names: list[str]) -> list[dict[str, Any]]:
    if not names:
        return []
    contents = Contents(folder, part, paths.model_marks())
    found = (contents.item(inside(folder, name)) for name in names)
    return [dataclasses.asdict(item) for item in found if item is not None]


def _editor(folder: Path, part: Part) -> DatasetEditor:
    return DatasetEditor(folder, part, paths.edit_journals(), paths.places())


def part_of(fields: Mapping[str, Any], folder: Path, strict: bool = False) -> Part:
    """Which of a folder's items a request is about.

    Args:
        fields: of the request.
        folder: the dataset's.
        strict: raise when there is no such control folder; without, pictures are listed while a name is being typed.

    Raises:
        Refused: a field is not what it must be.
        KilnError: see strict.
    """
    recursive = choice(str(fields.get("recursive", "0")), "recursive", ("0", "1"))
    masks = choice(str(fields.get("masks", "1")), "masks", ("0", "1"))
    also, controls = fields.get("also", ""), fields.get("controls", "")
    if not isinstance(also, str) or len(also) > 200:
        raise Refused(400, "also is the name of a sub-folder, or left out.")
    if not isinstance(controls, str) or len(controls) > MOST_CONTROLS:
        raise Refused(400, "controls are names of folders, or left out.")
    apart: tuple[Path, ...] = ()
    with nullcontext() if strict else suppress(KilnError):
        apart = paths.control_folders(controls, folder)
    return Part(recursive == "1", also, apart, masks == "1")


def _undoable(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {"id": entry.id, "what": entry.what, "count": len(entry.names), "time": entry.time}


def folder_of(name: object) -> Path:
    """The dataset's folder that a client names. Raises Refused."""
    if not isinstance(name, str) or not name.strip() or len(name) > 1000 or "\0" in name:
        raise Refused(400, "folder is missing; send the name of a dataset's folder.")
    try:
        return paths.dataset_folder(name)
    except KilnError as error:
        raise Refused(404, str(error)) from error
    except (OSError, ValueError, RuntimeError) as error:  # too long for a file system, not encodable
        raise Refused(404, "There is no such folder; choose one from the list.") from error


def media_of(fields: Mapping[str, Any]) -> Path:
    """The picture or clip that a client names. Raises Refused."""
    folder = folder_of(fields.get("folder"))
    try:
        path = inside(folder, fields.get("name"))
        found = ending(path.name) in ENDINGS and path.is_file()
    except (OSError, ValueError) as error:  # KilnError is one
        raise Refused(404, "The dataset holds no such picture or clip.") from error
    if not found:
        raise Refused(404, "The dataset holds no such picture or clip.")
    return path


def _list(body: dict[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_ITEMS:
        raise Refused(400, f"{name} is a list of 1 to {MOST_ITEMS} items.")
    return value


def _seen(value: Any) -> Seen:
    if not isinstance(value, dict):
        raise Refused(400, "An item is a JSON object with name and version.")
    return Seen(text_field(value, "name"), text_field(value, "version", 64))


def _change(value: Any) -> Change:
    seen = _seen(value)
    caption, fields = value.get("caption"), value.get("fields", {})
    if caption is not None and not isinstance(caption, str):
        raise Refused(400, "caption is a text, or left out.")
    flat = isinstance(fields, dict) and all(isinstance(v, str) for v in fields.values())
    if not flat:
        raise Refused(400, "fields is a JSON object of texts.")
    return Change(seen, caption, fields)


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()
