"""POST /v1/chat/completions as an ASGI endpoint: read, check, answer, and stop when the client has gone.

Written on ASGI itself because the client's leaving must cancel the work even while nothing is being sent,
and because a piece of text should cost one `send` and no more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from services.gateway import access
from services.gateway.admission.body_room import Body
from services.gateway.dialogue import Ask
from services.gateway.front import Front
from services.gateway.keys.api_keys import PRIORITY_HEADER, Caller
from services.gateway.openai.request import parse
from services.gateway.openai.response import Shape
from services.gateway.reply import Reply
from services.gateway.together import cancel
from ziya import telemetry
from ziya.errors import BadField, BodyTooLarge, Cancelled, Internal, ZiyaError

log = logging.getLogger(__name__)
_THREAD_BYTES = 256 << 10
_TIMEOUT_HEADER = "X-Request-Timeout"


class Completions:
    """The endpoint. `max_body`: bytes read of a body. `heartbeat`: seconds of silence before a comment is sent."""

    def __init__(self, front: Front, *, max_body: int, heartbeat: float) -> None:
        self._front = front
        self._max_body = max_body
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, reply = Request(scope, receive), Reply(send, self._heartbeat)
        try:
            authorization, priority = (request.headers.get(name, "") for name in ("authorization", PRIORITY_HEADER))
            with self._front.admitted("http", authorization, priority) as caller:
                access.current.get().key = caller.key.name
                with self._front.bodies.body(caller) as room:
                    await self._serve(request, receive, reply, caller, room)
        except ZiyaError as error:
            access.current.get().failure = error
            await reply.fail(error)
        except Exception:  # HTTP's counterpart of the RPC interceptor
            log.exception("the handler failed")
            defect = Internal(f"a defect of this server; its log names request {telemetry.request_id.get()}")
            access.current.get().failure = defect
            await reply.fail(defect)

    async def _serve(self, request: Request, receive: Receive, reply: Reply, caller: Caller, room: Body) -> None:
        started = time.monotonic()
        deadline = self._front.limits.deadline(_timeout(request))
        try:
            async with self._front.admission.readers.reading(caller, deadline - time.time()):
                body = await _read(request, self._max_body, room)
        except (ClientDisconnect, TimeoutError):
            raise Cancelled("the client did not send its request to the end") from None
        work = asyncio.create_task(self._answer(caller, body, reply, started, deadline))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Cancelled("the client went away")
            work.result()
        finally:
            await cancel([work, gone])

    async def _answer(self, caller: Caller, body: bytes, reply: Reply, started: float, deadline: float) -> None:
        asked = await asyncio.to_thread(parse, body) if len(body) > _THREAD_BYTES else parse(body)
        adapter = self._front.adapter_of(asked.model, caller.key)
        ask = Ask(
            dialogue=asked.dialogue,
            sampling=asked.sampling,
            started=started,
            deadline=deadline,
            request_id=telemetry.request_id.get(),
            salt=caller.key.salt,
            adapter=adapter,
        )
        wanted = asked.sampling.logprobs is not None
        shape = Shape(ask.request_id, asked.model, include_usage=asked.include_usage, logprobs=wanted)
        entry = access.current.get()
        entry.asked(ask, asked.model)
        async with aclosing(entry.watch(self._front.answer(ask, caller, reply.tell))) as pieces:
            await (reply.stream(shape, pieces) if asked.stream else reply.whole(shape, pieces))


async def _read(request: Request, limit: int, room: Body) -> bytes:
    """The body. Raises BodyTooLarge, from the header alone where that tells, and as Body.grow does."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise BodyTooLarge(f"the request has {length} bytes; at most {limit} are accepted")
    body = bytearray()
    async for block in request.stream():
        room.grow(len(block))
        body += block
        if len(body) > limit:
            raise BodyTooLarge(f"the request has more than {limit} bytes")
    return bytes(body)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _timeout(request: Request) -> float | None:
    text = request.headers.get(_TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadField(f"{_TIMEOUT_HEADER} must be a number of seconds above 0, not {text!r}", _TIMEOUT_HEADER)
    return seconds
