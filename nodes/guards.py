"""What every route of ours asks of a request before it looks at it: our own page, JSON, fields of the right kind.

The host's middleware compares Origin and Host, on loopback addresses only. Here a browser's own word counts on every
address: a page of another site is refused, for reading too, unless it is the one that --enable-cors-header names. A
body has a type that no form of another page can send without asking first
(https://fetch.spec.whatwg.org/#cors-safelisted-request-header).
"""

from __future__ import annotations

import functools
import json
import logging
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..trainer.errors import KilnError, shortened
from .host.origins import opened_origin

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """The request cannot be served: status, one sentence and what else the page needs to know."""

    def __init__(self, status: int, sentence: str, **more: Any) -> None:
        super().__init__(sentence)
        self.status = status
        self.more = more


def answering(handler: Handler) -> Handler:
    """Guards a handler; errors that are meant for a person become answers."""

    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            _check_origin(request)
            return await handler(request)
        except Refused as refused:
            return web.json_response({"error": str(refused), **refused.more}, status=refused.status)
        except KilnError as error:
            return web.json_response({"error": str(error)}, status=409)
        except web.HTTPException:
            raise
        except Exception as error:  # a disk that is full, a fault of ours: a sentence all the same
            log.exception("%s %s", request.method, shortened(request.path))
            why = shortened(str(error)) or type(error).__name__
            sentence = f"This could not be done ({why}); the server's log has the details."
            return web.json_response({"error": sentence}, status=503)

    return answer


def _check_origin(request: web.Request) -> None:
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:  # browsers leave it out on plain http addresses other than localhost
        foreign = origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != request.host.lower()
    if foreign and not _is_opened(origin, request.headers.get("Referer", "")):
        raise Refused(403, "This comes from a page of another site; use ComfyUI's own page.")


def _is_opened(origin: str | None, referer: str) -> bool:
    """Whether the owner has opened the server to the page; of a picture that a page shows only the referer tells it."""
    opened = opened_origin()
    if origin is None:
        page = urllib.parse.urlsplit(referer)
        origin = f"{page.scheme}://{page.netloc}"
    return opened == "*" or (bool(opened) and origin.lower() == opened)


async def json_body(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. Raises Refused."""
    if request.content_type != "application/json":
        raise Refused(415, "The body is JSON; send Content-Type: application/json.")
    try:
        body = await request.json()
    except (
        LookupError,
        web.HTTPUnsupportedMediaType,
    ) as error:  # what text() raises differs by aiohttp's version
        raise Refused(415, "The body's charset is not known here; send UTF-8 and name no charset.") from error
    except (ValueError, RecursionError):
        body = None
    except web.HTTPRequestEntityTooLarge as error:
        raise Refused(413, "The request is larger than ComfyUI takes; choose fewer items at once.") from error
    if not isinstance(body, dict):
        raise Refused(400, "The body is a JSON object.")
    return body


def run_id(request: web.Request) -> str:
    """The run that the address names. Raises Refused for what no run can be called."""
    name = request.match_info["run"]
    if len(name) > 100 or not name.isprintable():
        raise Refused(404, "There is no such run.")
    return name


def number(text: str, name: str, least: int = 0, most: int = 999_999_999) -> int:
    """A whole number of the address. Raises Refused."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        limits = f"from {least} to {most}" if (least, most) != (0, 999_999_999) else "0 or more"
        raise Refused(400, f"{name} is {text[:40]!r}; it is a whole number, {limits}.")
    return int(text)


def text_field(body: dict[str, Any], name: str, most: int = 1000) -> str:
    """A text of the body. Raises Refused."""
    value = body.get(name)
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        shown = shortened(json.dumps(value, default=str), 60)
        raise Refused(400, f"{name} is {shown}; it is a text of at most {most} characters.")
    return value


def choice(value: Any, name: str, options: tuple[str, ...]) -> str:
    """One of several words. Raises Refused."""
    if value not in options:
        raise Refused(400, f"{name} is {str(value)[:40]!r}; it is one of {', '.join(options)}.")
    return str(value)
