"""The gateway's side of the page: what of gradio strangers may reach, and with which headers its answers leave.

gradio has many paths that the page does not need (a proxy to other servers, API calls, monitoring, an editor). Only
those here are passed on, with bounds on what they bring.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from html import escape

import anyio
import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from services.gateway.openai.error import error_headers, error_object, plain_error
from services.gateway.page.process import PageProcess
from services.gateway.together import cancel
from ziya.errors import BodyTooLarge, Cancelled, DeadlineExceeded, InvalidRequest, Unavailable, ZiyaError, status_of

_API = "/gradio_api"
UPLOAD = f"{_API}/upload"
FILES = f"{_API}/file="
_GET = re.compile(
    rf"/|/config|/theme\.css|/favicon\.ico|/(?:assets|static)/[\w./@+-]+"
    rf"|{_API}/(?:queue/data|upload_progress|heartbeat/\w+)|{_API}/file=.+",
    re.ASCII,
)
# Of the gateway's routes; a path must match the patterns, too.
ROUTES = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/assets/{path:path}",
    "/static/{path:path}",
    f"{_API}/{{path:path}}",
)
_POST = re.compile(rf"{_API}/(?:upload|queue/join|run/predict|cancel|reset)", re.ASCII)
# Everything but uploads: a whole conversation comes with each question, its pictures by name.
MAX_BODY_BYTES = 8 << 20
# For a request to come in whole and its answer to begin.
ASK_SECONDS = 60.0
# Then somebody who opens `/` is told that the page is being started.
PATIENCE_SECONDS = 2.0
# Connections to the page at once: a tab has up to two that stay.
MAX_CONNECTIONS = 512
_ASKED = ("accept", "accept-language", "content-type", "content-length", "host", "x-forwarded-proto", "range")
_ANSWERED = (
    "content-type",
    "content-length",
    "content-disposition",
    "content-security-policy",
    "etag",
    "content-encoding",
    "vary",
    "last-modified",
    "cache-control",
    "content-range",
)
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SORRY = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>…</title>
<p>The chat page is not there: {message}. This tries again by itself.</p>
<p lang="zh">对话页面尚未就绪，稍后自动重试。</p>
</html>
"""
# A file that a visitor sent is never a page, whatever is in it.
_OF_FILES = "default-src 'none'; sandbox"


def takes(method: str, path: str) -> bool:
    """Whether the page has such a path, for strangers."""
    allowed = {"GET": _GET, "HEAD": _GET, "POST": _POST}.get(method)
    return allowed is not None and ".." not in path and allowed.fullmatch(path) is not None


def is_quiet(path: str) -> bool:
    """Whether the access log can do without: a visit asks for some eighty files."""
    return path.startswith(("/assets/", "/static/", f"{_API}/")) and path != UPLOAD


class PageProxy:
    """An ASGI endpoint. `max_upload`: bytes of one upload, all its files together."""

    def __init__(self, process: PageProcess, max_upload: int) -> None:
        self.process, self._max_upload = process, max_upload
        self._client: httpx.AsyncClient | None = None
        self._socket = ""

    async def close(self) -> None:
        """Ends the page, and the connections to it."""
        await self.process.stop()
        if self._client is not None:
            await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        whole = scope["raw_path"] + scope["query_string"]
        if not (takes(request.method, scope["path"]) and whole.isascii()):
            message = f"{request.method} {scope['path'][:200]}: not found"
            await JSONResponse(plain_error(message, 404), 404)(scope, receive, send)
            return
        try:
            upstream = await self._ask(request)
        except ZiyaError as error:
            await _failure(error, scope["path"])(scope, receive, send)
            return
        # A scope of anyio's, which lets httpx finish what it closes; asyncio's cancellation leaves connections behind.
        visit = anyio.CancelScope()
        gone = asyncio.create_task(_gone(receive, visit))
        try:
            with visit, suppress(httpx.HTTPError):  # the page has died; uvicorn breaks the answer off
                await _send(upstream, scope["path"], send)
        finally:
            await cancel([gone])
            await upstream.aclose()

    async def _ask(self, request: Request) -> httpx.Response:
        """Raises Unavailable, BodyTooLarge, InvalidRequest, DeadlineExceeded or Cancelled."""
        client = await self._connected(math.inf if request.scope["path"] != "/" else PATIENCE_SECONDS)
        path = request.scope["raw_path"].decode("ascii")
        query = request.scope["query_string"].decode("ascii")
        url = f"http://page{path}{'?' * bool(query)}{query}"
        headers = {name: request.headers[name] for name in _ASKED if name in request.headers}
        headers["accept-encoding"] = request.headers.get("accept-encoding", "identity")  # httpx would ask for its own
        limit = self._max_upload if request.scope["path"] == UPLOAD else MAX_BODY_BYTES
        body = _bounded(request, limit) if request.method == "POST" else None
        try:
            asked = client.build_request(request.method, url, headers=headers, content=body)
            with anyio.fail_after(ASK_SECONDS):
                return await client.send(asked, stream=True)
        except TimeoutError:
            raise DeadlineExceeded(f"the request did not come within {ASK_SECONDS:g} seconds") from None
        except httpx.InvalidURL:
            raise InvalidRequest("this is no path of the chat page") from None
        except ClientDisconnect:
            raise Cancelled("the client did not send its request to the end") from None
        except httpx.PoolTimeout:
            raise Unavailable("too many visitors have the chat page open") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"the chat page does not answer ({type(error).__name__})") from None

    async def _connected(self, patience: float) -> httpx.AsyncClient:
        """To the process that lives; a new one has a new socket. Raises Unavailable."""
        socket = await self.process.socket(patience)
        if self._client is None or socket != self._socket:
            limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=8)
            transport = httpx.AsyncHTTPTransport(uds=socket, limits=limits)
            timeout = httpx.Timeout(None, connect=5.0, pool=1.0)
            old, self._client = self._client, httpx.AsyncClient(transport=transport, timeout=timeout)
            self._socket = socket
            if old is not None:
                await old.aclose()
        return self._client


def _failure(error: ZiyaError, path: str) -> Response:
    """The gateway's error; a person's browser, which asks for `/`, gets a page that tries again by itself."""
    status, headers = status_of(error)[1], error_headers(error)
    if path != "/":
        return JSONResponse(error_object(error), status, headers)
    return HTMLResponse(_SORRY.format(message=escape(error.message)), status, {**headers, "Refresh": "2", **SECURITY})


async def _bounded(request: Request, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for block in request.stream():
        size += len(block)
        if size > limit:
            raise BodyTooLarge(f"more than {limit} bytes were sent; no more are accepted here")
        yield block


async def _send(upstream: httpx.Response, path: str, send: Send) -> None:
    kept = {name: upstream.headers[name] for name in _ANSWERED if name in upstream.headers}
    if path.startswith(FILES):
        kept["content-security-policy"] = _OF_FILES
    if path.startswith("/assets/"):
        kept["cache-control"] = "public, max-age=86400"
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in (kept | SECURITY).items()]
    await send({"type": "http.response.start", "status": upstream.status_code, "headers": headers})
    async for block in upstream.aiter_raw():
        await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive, visit: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    visit.cancel()
