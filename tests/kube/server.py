"""The API over HTTP: who asks, what for, may they, does a fault meet them; then the answer in the form they take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import yaml
from aiohttp import web

from tests.kube import discovery, openapi, protobuf, tables
from tests.kube.answers import Answers, Ask
from tests.kube.errors import ApiError, bad_request, no_such_path, unauthorized, unsupported_media_type
from tests.kube.faults import Fault, Faults
from tests.kube.patching import APPLY, JSON, MERGE, STRATEGIC
from tests.kube.rbac import Rbac
from tests.kube.routes import Target, target
from tests.kube.tokens import ANONYMOUS, Refused, Tokens, User
from tests.kube.verbs import Api
from tests.kube.watching import Watch

Log = Callable[[web.Request, Target], Awaitable[web.StreamResponse]]
_HEALTH = ("/healthz", "/readyz", "/livez")
_PATCHES = (JSON, MERGE, STRATEGIC, APPLY)


class Server:
    """One handler for every path."""

    def __init__(self, api: Api, access: Rbac, tokens: Tokens, faults: Faults, log: Log | None = None) -> None:
        self._api, self._access, self._tokens, self._faults, self._log = api, access, tokens, faults, log
        self.answers = Answers(api, access, tokens)
        self.stopping = asyncio.Event()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answered(request)
        except ApiError as error:
            return web.json_response(error.body(), status=error.code, headers=error.headers)
        except (KeyError, TypeError, AttributeError) as error:  # a body of a shape that no schema has caught
            body = ApiError(500, "InternalError", f"{type(error).__name__}: {error}").body()
            request.app.logger.exception("%s %s", request.method, request.path)
            return web.json_response(body, status=500)

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        user, path = self._user(request), request.path
        if path in _HEALTH or any(path.startswith(f"{each}/") for each in _HEALTH):
            return web.Response(text="ok")
        steps = path.strip("/").split("/")
        is_resource = (steps[0] == "api" and len(steps) > 2) or (steps[0] == "apis" and len(steps) > 3)
        if not is_resource:
            return await self._told(request, user, path)
        found = target(self._api.kinds, request.method, path, request.query)
        met = self._faults.meet(found.verb, found.resource, user.name)
        await self._suffer(met)
        self._access.authorize(user, found.kind, found.use, found.name)
        if found.verb == "watch":
            return await self._watch(request, found)
        if found.sub == "log" and self._log is not None:
            return await self._log(request, found)
        answer = await self._one(request, found, user)
        if any(fault.lose_answer for fault in met):
            _hang_up(request)
        return answer

    async def _told(self, request: web.Request, user: User, path: str) -> web.Response:
        await self._suffer(self._faults.meet("get", path, user.name))
        self._access.authorize_path(user, path)
        document = discovery.answer(self._api.kinds, path) or openapi.answer(self._api.kinds, path)
        if document is None:
            raise no_such_path()
        return web.json_response(document)

    def _user(self, request: web.Request) -> User:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not token:
            return ANONYMOUS
        try:
            return self._tokens.authenticate(token)[0] if scheme.lower() == "bearer" else ANONYMOUS
        except Refused as refusal:
            raise unauthorized() from refusal

    @staticmethod
    async def _suffer(met: list[Fault]) -> None:
        for fault in met:
            if fault.latency:
                await asyncio.sleep(fault.latency)
            if error := fault.error():
                raise error

    async def _one(self, request: web.Request, found: Target, user: User) -> web.Response:
        body = await _body(request, found.verb)
        agent = request.headers.get("User-Agent", "")
        ask = Ask(found, user, body, request.content_type, request.query, agent)
        code, document, warnings = self.answers.answer(ask)
        if tables.are_asked(request.headers.get("Accept", "")):
            document = tables.table(found.kind, document, request.query.get("includeObject", "Metadata"))
        response = web.json_response(document, status=code, dumps=_compact)
        for text in warnings:
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            response.headers.add("Warning", f'299 - "{quoted}"')
        return response

    async def _watch(self, request: web.Request, found: Target) -> web.StreamResponse:
        watch = Watch(self._api.store, found.kind, found.namespace, request.query, found.name)
        as_table = tables.are_asked(request.headers.get("Accept", ""))
        include = request.query.get("includeObject", "Metadata")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        with self._faults.watch_open(found.resource, lambda: loop.call_soon_threadsafe(_hang_up, request)):
            async for kind, obj in watch.events():
                shown = tables.row_event(found.kind, obj, include) if as_table and kind != "ERROR" else obj
                await response.write(_compact({"type": kind, "object": shown}).encode() + b"\n")
        await response.write_eof()
        return response


def _compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _body(request: web.Request, verb: str) -> Any:
    if verb not in ("create", "update", "patch", "delete", "deletecollection"):
        return None
    data, media = await request.read(), request.content_type
    if verb == "patch" and media not in _PATCHES:
        raise unsupported_media_type(media, _PATCHES)
    if "cbor" in media:
        raise unsupported_media_type(media, ("application/json", protobuf.MEDIA))
    if not data:
        return {}
    try:
        if media == protobuf.MEDIA:
            return protobuf.decode(data)
        is_yaml = "yaml" in media
        return yaml.load(data, Loader=yaml.CSafeLoader) if is_yaml else json.loads(data)
    except (ValueError, yaml.YAMLError) as error:
        raise bad_request(f"error decoding the body: {error}") from error
