"""The HTTP face: routes, request ids, and errors in OpenAI's shape for every path."""

from __future__ import annotations

import re
import time
from html import escape

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway import access
from services.gateway.completions import Completions
from services.gateway.front import Front
from services.gateway.health import Readiness
from services.gateway.keys.key_entry import Key
from services.gateway.openai.error import error_headers, error_object, plain_error
from services.gateway.page import proxy
from ziya import telemetry, tracing
from ziya.errors import Forbidden, ZiyaError, status_of

_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_ANSWERS = "/v1/chat/completions"
# Asked every few seconds by machines.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
# Characters of a path that are sent back.
MAX_PATH = 200
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{model}</title>
<h1>{model}</h1>
<p>A bilingual vision-language model. This address speaks OpenAI's API:</p>
<ul>
<li><code>POST /v1/chat/completions</code></li>
<li><a href="/v1/models"><code>GET /v1/models</code></a></li>
<li><a href="/healthz"><code>GET /healthz</code></a>, <a href="/readyz"><code>GET /readyz</code></a></li>
{metrics}</ul>
{hint}</html>
"""
_HINT = "<p>There is no chat page here, for gradio is not installed: <code>{install}</code>.</p>\n"
_METRICS = '<li><a href="/metrics"><code>GET /metrics</code></a></li>\n'


class HttpApi:
    """Makes the ASGI application. Without a `registry` there is no `/metrics`, without a `page` a list of paths at `/`.

    `install` is the command that would bring the page, where nothing but its absence is the reason.
    """

    def __init__(
        self,
        front: Front,
        completions: Completions,
        readiness: Readiness,
        registry: CollectorRegistry | None,
        *,
        page: proxy.PageProxy | None = None,
        install: str = "",
    ) -> None:
        self._front = front
        self._readiness = readiness
        self._registry = registry
        hint = _HINT.format(install=escape(install)) if install else ""
        metrics = "" if registry is None else _METRICS
        self._page_body = _PAGE.format(model=escape(front.model), metrics=metrics, hint=hint)
        self._since = int(time.time())
        routes = [
            Route(_ANSWERS, completions, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/healthz", _live),
            Route("/readyz", self._ready),
            *([Route("/metrics", self._metrics)] if registry is not None else []),
            *([Route(path, page) for path in proxy.ROUTES] if page is not None else [Route("/", self._page)]),
        ]
        handlers = {HTTPException: _http_error, ZiyaError: _error}
        others = Starlette(routes=routes, exception_handlers=handlers)
        # It would send clients to the host that they name themselves.
        others.router.redirect_slashes = False
        self.app = RequestIds(completions, others)

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def _model(self, request: Request) -> Response:
        self._front.adapter_of(request.path_params["name"], self._check_key(request))
        return JSONResponse(self._description())

    async def _ready(self, request: Request) -> Response:
        report = await self._readiness.report()
        ready = report.ready and not self._front.admission.draining
        stages = report.stages | ({"gateway": "draining"} if self._front.admission.draining else {})
        return JSONResponse({"ready": ready, "stages": stages}, 200 if ready else 503)

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(self._page_body)

    async def _metrics(self, request: Request) -> Response:
        """Where keys are needed, these tell of everybody: only keys of the operator's own see them."""
        key = self._check_key(request)
        if self._front.keys.needed and not key.role.sees_metrics:
            raise Forbidden(f"the key {key.name} may not see the metrics: its role is {key.role}")
        assert self._registry is not None
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _check_key(self, request: Request) -> Key:
        return self._front.keys.check(request.headers.get("authorization", ""))

    def _description(self) -> dict[str, object]:
        return {"id": self._front.model, "object": "model", "created": self._since, "owned_by": "ziya-visual"}


class RequestIds:
    """Names every request: the client's `X-Request-Id` where it is fit for a log, else a new one; and says it back.

    The request's trace and its line in the access log begin here, too, and end here. What asks for an answer goes to
    `answers` without Starlette between, whose layers cost every refusal, and every event of every stream.
    """

    def __init__(self, answers: ASGIApp, others: ASGIApp) -> None:
        self._answers, self._others = answers, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._others(scope, receive, send)
            return
        asks = scope["path"] == _ANSWERS and scope["method"] == "POST"
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        own = given if _REQUEST_ID.fullmatch(given) else telemetry.new_request_id()
        telemetry.request_id.set(own)
        telemetry.traceparent.set(tracing.accept(headers.get("traceparent")))
        entry = access.Entry("http", f"{scope['method']} {scope['path'][: access.NAME_LENGTH]}", _host(scope))

        async def naming(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = own
                entry.status = message["status"]
            await send(message)

        quiet = scope["path"] in _QUIET or proxy.is_quiet(scope["path"])
        with _span(scope, own) as span, access.told(entry, quiet=quiet):
            await (self._answers if asks else self._others)(scope, receive, naming)
            access.describe(span, entry)


def _span(scope: Scope, request_id: str) -> tracing.Span:
    """Of answers only: probes and pages are no traces."""
    if scope["path"] != _ANSWERS:
        return tracing.Span()
    name = f"{scope['method']} {_ANSWERS}"
    return tracing.span(name, {"ziya.request_id": request_id}, kind=tracing.Kind.SERVER)


def _host(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


async def _live(request: Request) -> Response:
    return JSONResponse({"live": True})


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ZiyaError)
    return JSONResponse(error_object(error), status_of(error)[1], error_headers(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Not `request.url`, which is made with the client's Host, whatever that holds.
    message = f"{request.method} {request.scope['path'][:MAX_PATH]}: {error.detail.lower()}"
    return JSONResponse(plain_error(message, error.status_code), error.status_code, error.headers)
